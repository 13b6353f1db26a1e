"""Every method on one history, at equal budget, through one reader and one way of scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from experiments.methods import cost as costs
from experiments.methods.cost import Cost
from experiments.methods.history import History
from experiments.methods.standing import (
    Answer,
    Asked,
    Protocol,
    Standing,
    empty_tail,
    room,
)
from experiments.methods.table import METHODS
from mctx.errors import UserError
from mctx.flops import operations
from mctx.focus.layout import Layout
from mctx.models.wrapped import init_part
from mctx.opened import Opened
from mctx.runtime import Session, SessionConfig, reading
from mctx.runtime.cache import BlockCache
from mctx.tree.ingest import Reader
from mctx.tree.store import Tree

TIMED = 8  # tokens decoded, and refocuses made, for a cost


class Scorer:
    """What every method makes of one history.

    All methods read the same rows through the same compiled programs, and every one of them is
    scored by `mctx.runtime.reading.judge` on the tail it is given. What a method may know of the
    history is in `history`, which no other scorer shares; the reader, which keeps nothing, is
    what scorers of one checkpoint should share, so that its programs are compiled once.

    Args:
      history: int32 tokens, whole blocks; or an open tree, of which the first `blocks` blocks
        (None: all) are the history.
      cache: rows of the tree's blocks, if somebody holds them already; only with a tree.
      most_blocks: layouts have room for as many, so that scorers of longer and of shorter
        histories run the same programs; None: the blocks of this one.
    """

    def __init__(
        self,
        opened: Opened,
        history: np.ndarray | Tree,
        protocol: Protocol | None = None,
        reader: Reader | None = None,
        cache: BlockCache | None = None,
        blocks: int | None = None,
        most_blocks: int | None = None,
    ):
        self.items = frozenset(opened.params)
        self.opened, self.protocol = with_gistnet(opened), protocol or Protocol()
        self.model, self.params = opened.model, self.opened.params
        self.reader = reader or Reader(self.model, self.params)
        self.prefix = self.reader.prefix
        if isinstance(history, np.ndarray):
            self.history = History.of_tokens(self.opened, self.reader, history)
        else:
            self.history = History(self.reader, history, cache)
        self._sessions: dict[tuple, Session] = {}
        self.most_blocks = max(most_blocks or 0, self.history.tree.blocks)
        self.seek(self.history.tree.blocks if blocks is None else blocks)

    def seek(self, blocks: int) -> None:
        """Takes the first `blocks` blocks as the history, from here on."""
        if not 0 < blocks <= self.history.tree.blocks:
            raise UserError(
                f"the tree has {self.history.tree.blocks} blocks: take between 1 and all of them."
            )
        self.blocks = blocks
        self._kept: dict[str, tuple[Asked, list[Standing]]] = {}  # by method
        self.spent = 0.0

    @property
    def length(self) -> int:
        """Tokens of the history."""
        return self.blocks * self.model.gist.block

    def tokens(self) -> np.ndarray:
        return self.history.tree.tokens(0, self.length)

    # -- what is asked of a method ---------------------------------------------------------

    def nll(self, method: str, tail: np.ndarray, support=()) -> np.ndarray | None:
        """NLL of tail[1:] in nats, [len(tail) - 1]; tail[0] is only read.

        None where the method is not defined, as `answer` and `continuation` too: full attention
        past the trained window, gists that do not fit the budget, parts that the checkpoint lacks.
        """
        answer = self.answer(method, tail, len(tail) - 1, support)
        return None if answer is None else answer.nll

    def answer(self, method: str, tail: np.ndarray, count: int, support=()) -> Answer | None:
        """NLL of tail[1:], and where greedy decoding would say the same.

        Args:
          count: tokens at the tail's end that are asked for. The others are only the question:
            methods that see the future look at what is asked for alone.
          support: token ranges of the history that hold what must be known; `handed` shows them.
        """
        tail = np.asarray(tail, np.int32)
        if len(tail) < 2 or not 0 < count < len(tail):
            raise UserError("a tail is one token that is read and at least one that is scored.")
        weights = (np.arange(len(tail) - 1) >= len(tail) - 1 - count).astype(np.float32)
        nll = np.full(len(tail) - 1, np.nan, np.float32)
        greedy = np.zeros(len(tail) - 1, bool)
        asked = Asked(tail, weights, tuple(support), self._fits(len(tail) - 1))
        for standing in self._stand(method, asked):
            each, hits = self._judge(standing, tail)
            scored = slice(None) if standing.scored is None else standing.scored
            nll[scored], greedy[scored] = each[scored], hits[scored]
        return None if np.isnan(nll).any() else Answer(nll, greedy)

    def continuation(
        self, method: str, last: np.ndarray, count: int, support=()
    ) -> np.ndarray | None:
        """The `count` tokens that greedy decoding says after the history and `last`.

        Nothing is added to the history and no focus moves. None, too, for methods that see the
        future: there is none to see.
        """
        if METHODS[method].sees_future:
            return None
        last = np.asarray(last, np.int32)
        asked = Asked(support=tuple(support), fits=self._fits(len(last) + count - 1))
        for standing in self._stand(method, asked):
            return np.array(list(self._decode(standing, last, count)), np.int32)
        return None

    def standings(
        self, method: str, tail: np.ndarray | None = None, support=()
    ) -> Iterator[Standing]:
        """What the method puts before the tail, one after another; none where it is not defined.

        The tail is for those that see the future.
        """
        weights = None if tail is None else np.ones(len(tail) - 1, np.float32)
        fits = self._fits(1 if tail is None else len(tail) - 1)
        return self._stand(method, Asked(tail, weights, tuple(support), fits))

    def layout(self, method: str, tail: np.ndarray | None = None, support=()) -> np.ndarray | None:
        """Blocks shown as tokens, all of each, rising; of several standings, those of any."""
        found = [standing.detailed for standing in self.standings(method, tail, support)]
        return np.unique(np.concatenate(found)) if found else None

    def cost(self, method: str, tail: np.ndarray | None = None, support=()) -> Cost | None:
        """What the method costs here."""
        times = []
        for _ in range(3):  # the first compiles
            self._kept.clear()
            for session in self._sessions.values():
                session.assembly.forget()
                session.shelves.clear()
            before, made, spent = self.history.tree.bytes_read, [], 0.0
            began = time.perf_counter()
            for standing in self.standings(method, tail, support):
                jax.block_until_ready(standing.buffer.rows)
                spent += time.perf_counter() - began
                read = self.history.tree.bytes_read - before
                made.append((self._ms_token(standing), self._flops_token(standing), standing))
                began = time.perf_counter()
            times.append(1e3 * spent)
        if not made:
            return None
        ms_token, flops_token, standing = made[-1]
        return Cost(
            ms_refocus=min(times[1:]),
            ms_token=ms_token,
            flops_token=flops_token,
            flops_refocus=sum(one.flops for *_, one in made),
            tree_bytes=read,
            entries=standing.entries,
            host_bytes=costs.peak_host_bytes(),
            device_bytes=costs.peak_device_bytes(),
            tail="window" if standing.session else "fresh",
        )

    # -- what methods ask of the scorer ----------------------------------------------------

    def run(self, function: Callable, static: tuple, *arguments):
        """`function(*static, *arguments)`, its operations counted as the refocus's."""
        self.spent += operations(function, static, *arguments)
        return function(*static, *arguments)

    def focused(self, config: SessionConfig, table: np.ndarray | None) -> Standing:
        """What a session shows under a table of [blocks] nats, or under the lens."""
        worths = None if table is None else lambda _: table
        return self._of_session(*self._session(config, None, worths))

    def placed(self, config: SessionConfig, layouts: Layout, gist_rows=None) -> Standing:
        """What a session shows of a given layout, under given rows of gists."""
        flat = np.zeros(self.blocks)
        session, key = self._session(config, gist_rows, lambda _: flat - 1)
        session.place(layouts)
        return self._of_session(session, key)

    def _session(self, config, gist_rows, worths):
        """The session of these settings, standing where the history ends, and its key."""
        if config is None:  # a session would take its own defaults for it
            raise UserError("a session needs settings: where `roomy` has none, stand nothing.")
        key = config, getattr(gist_rows, "__qualname__", None)
        # What stood on this session's buffer stands no longer.
        self._kept = {
            name: kept
            for name, kept in self._kept.items()
            if all(standing.session != key for standing in kept[1])
        }
        if key not in self._sessions:
            self._sessions[key] = Session(
                self.opened,
                self.history.tree,
                config,
                self.reader,
                self.history.cache,
                worths,
                self._heard,
                gist_rows,
            )
            if self.blocks == self.history.tree.blocks:
                return self._sessions[key], key
        session = self._sessions[key]
        session.worths = worths
        session.seek(self.blocks)
        return session, key

    def _heard(self, session, scalars):
        parts = ("decide", "find", "assemble")
        self.spent += sum(scalars.get(f"refocus/flops/{part}", 0.0) for part in parts)

    def _of_session(self, session, key) -> Standing:
        heads = np.asarray(session.tail.heads)
        level, index, count = (np.asarray(session.layouts[i]) for i in (0, 1, 5))
        live = (np.arange(level.shape[1]) < count[:, None])[heads]
        detailed = np.unique(index[heads][live & (level[heads] == 0)])
        return Standing(
            session.assembly.buffer,
            session.tail,
            session.config.merger == "learned",
            session.prefix_bias,
            detailed,
            session=key,
        )

    # -- how every method is read ----------------------------------------------------------

    def _fits(self, ahead: int) -> bool:
        """Whether the trained window holds prefix, history and so many entries more."""
        base = self.model.base
        return len(base.prefix) + self.length + ahead <= base.window

    def _stand(self, name: str, asked: Asked) -> Iterator[Standing]:
        """The method's standings. One that sees nothing of the tail is kept until its session is
        needed for another."""
        method = METHODS[name]
        if not self.items.issuperset(method.items) or method.sees_future and asked.tail is None:
            return
        if method.sees_future:
            yield from self._counted(method.stand(self, asked))
            return
        blind = Asked(support=asked.support, fits=asked.fits)
        if name not in self._kept or self._kept[name][0] != blind:
            self._kept[name] = blind, list(self._counted(method.stand(self, blind)))
        yield from self._kept[name][1]

    def _counted(self, standings):
        """Each standing with the operations that it took, those of other methods it asks among
        them."""
        outside, self.spent = self.spent, 0.0
        for standing in standings:
            yield standing._replace(flops=standing.flops + self.spent)
            outside, self.spent = outside + self.spent, 0.0
        self.spent = outside

    def _judge(self, standing, tail):
        padded = np.zeros(room(len(tail), self.model.gist.block), np.int32)
        padded[: len(tail)] = tail
        found = reading.judge(
            self.model,
            standing.learned,
            self.params,
            standing.buffer,
            standing.tail,
            padded,
            standing.prefix_bias,
        )
        return (x[: len(tail) - 1] for x in jax.device_get(found))

    def _decode(self, standing, last, count) -> Iterator[int]:
        """Greedy tokens, one by one, in a tail of their own."""
        step = self.model.gist.block
        tail = empty_tail(self.model, standing.tail, room(len(last) + count, step))
        for at in range(0, len(last), step):
            piece = last[at : at + step]
            tail = self._extend(standing, tail, piece, step if len(piece) > 1 else 1)
        for i in range(count):
            logits = reading.next_logits(self.params["base"], tail.last)
            token = int(np.argmax(logits))
            yield token
            if i + 1 < count:
                tail = self._extend(standing, tail, np.array([token], np.int32), 1)

    def _extend(self, standing, tail, tokens, size):
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        count = np.int32(len(tokens))
        behind = standing.buffer, tail, padded, count, standing.prefix_bias
        tail, _ = reading.extend(self.model, standing.learned, self.params, *behind)
        return tail

    def _ms_token(self, standing) -> float:
        """Of one token of several that are decoded, the first left out."""
        ends = []
        for _ in self._decode(standing, self.tokens()[-1:], TIMED + 1):
            ends.append(time.perf_counter())
        return 1e3 * (ends[-1] - ends[0]) / TIMED

    def _flops_token(self, standing) -> float:
        step = self.model.gist.block
        tail = empty_tail(self.model, standing.tail, room(TIMED + 2, step))
        behind = standing.buffer, tail, np.zeros(1, np.int32), np.int32(1), standing.prefix_bias
        static = self.model, standing.learned
        return operations(reading.extend, static, self.params, *behind)


def with_gistnet(opened: Opened) -> Opened:
    """A tree wants gists: a base without a GistNet gets one of zeros, whose gists no method that
    such a checkpoint has will show."""
    if "gistnet" in opened.params:
        return opened
    shapes = jax.eval_shape(lambda: init_part(opened.model, "gistnet", jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return opened._replace(params=opened.params | {"gistnet": zeros})
