"""Several histories in one batch of the device: one step of decoding draws a token of each.

    batch = SessionBatch(open_checkpoint("data/checkpoints/pico"), ["runs/one", "runs/two"])
    batch.sessions[0].ingest("...")
    print(batch.generate([dict(text="Once", tokens=64), dict(text="def ", temperature=0.8)]))

Each is a `Session` with its own tree, layouts and refocuses, and may be used like any other; they
share the arrays that their rows stand in (`Lanes`), so that they are read together.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mctx.errors import UserError
from mctx.opened import Opened
from mctx.runtime import generation
from mctx.runtime.config import SessionConfig, check, focus_configs
from mctx.runtime.decoding import Drawing, Line
from mctx.runtime.generation import Ask, Words
from mctx.runtime.ids import prompt_ids
from mctx.runtime.lanes import lanes_for
from mctx.runtime.opening import place_of
from mctx.runtime.session import Session
from mctx.tree.ingest import Reader
from mctx.tree.store import Tree

KNOWN = ("text", *inspect.signature(generation.asked).parameters)  # keys of an ask


class SessionBatch:
    """Sessions that are continued together. Not thread-safe.

    Args:
      opened: from `open_checkpoint`.
      trees: one a session, each an open `Tree` or the URI of one.
      config: of every session; reader: shared with others of the same model.
      how: what else every `Session` is given.
    """

    def __init__(
        self,
        opened: Opened,
        trees: Sequence[Tree | str | Path],
        config: SessionConfig | None = None,
        reader: Reader | None = None,
        **how,
    ):
        model, config = opened.model, config or SessionConfig()
        check(config, model)
        if not trees or isinstance(trees, str | Path):
            raise UserError("a batch needs a list of at least one tree.")
        places = [place_of(tree) for tree in trees]
        twice = next((one for one in places if places.count(one) > 1), None)
        if twice:
            raise UserError(f"{twice} is given twice: give every session a tree of its own.")
        reader = reader or Reader(model, opened.params)
        rows = focus_configs(model, config)[0].budget
        lanes = lanes_for(model, config, rows, reader.prefix, len(trees))
        self.sessions = tuple(
            Session(opened, tree, config, reader, lane=(lanes, lane), **how)
            for lane, tree in enumerate(trees)
        )

    def generate(self, asks: Sequence[Mapping | None]) -> list[str]:
        """Continues every history; asks: see `stream`."""
        said = [""] * len(self.sessions)
        for which, piece in self.stream(asks):
            said[which] += piece
        return said

    def stream(self, asks: Sequence[Mapping | None]) -> Iterator[tuple[int, str]]:
        """As `generate`, piece by piece: which session, and what it says next.

        What fails in one session (its store, say) ends its text alone. The others say theirs to
        the end; then the error is raised, and that session can go on once its cause is gone.

        Args:
          asks: one a session: `text` to read first, and settings as `generation.asked` has them;
            None for a session that is left alone.

        Raises:
          UserError: an ask is none, or a setting is out of its range; at once, before anything is
            read.
        """
        if isinstance(asks, str | Mapping) or not isinstance(asks, Sequence):
            raise UserError("give a list of asks, one a session.")
        if len(asks) != len(self.sessions):
            raise UserError(f"give {len(self.sessions)} asks, one a session, not {len(asks)}.")
        wanted = {}
        for lane, ask in enumerate(asks):
            if ask is not None:
                wanted[lane] = self._wanted(ask)
        return self._said(wanted)

    def _wanted(self, ask: Mapping) -> tuple[np.ndarray, Ask]:
        """Ids to read first, and the settings."""
        if not isinstance(ask, Mapping):
            raise UserError(f"an ask is dict(text=..., tokens=...) or None, not {ask!r}.")
        for name in ask:
            if name not in KNOWN:
                raise UserError(f"an ask has no {name!r}: give some of {', '.join(KNOWN)}.")
        settings = {name: value for name, value in ask.items() if name != "text"}
        text = prompt_ids(self.sessions[0].opened, ask.get("text", ""))
        return text, generation.asked(**settings)

    def _said(self, wanted: dict[int, tuple[np.ndarray, Ask]]):
        lines, errors = self._lines(wanted)
        decode = self.sessions[0].opened.tokenizer.decode
        words = {
            lane: Words(decode, ask.stop, self.sessions[lane].recent(generation.CONTEXT))
            for lane, (_, ask) in wanted.items()
        }
        try:
            yield from _drawn(lines, words)
        except Exception as error:
            errors.append(error)
        finally:
            errors += self._stored(wanted)
        for line in lines:
            if text := words[line.lane].rest():
                yield line.lane, text
        if errors:
            raise errors[0]

    def _lines(self, wanted) -> tuple[list[Line], list[Exception]]:
        """The prompts are read, each in its own session."""
        lines, errors = [], []
        for lane, (ids, ask) in wanted.items():
            try:
                self.sessions[lane].prompt(ids)
                lines.append(self.sessions[lane].line(ask.count, ask.sampling))
            except Exception as error:
                errors.append(error)
        return lines, errors

    def _stored(self, wanted) -> list[Exception]:
        """Everything is committed; what failed."""
        errors = []
        for lane in wanted:
            try:
                self.sessions[lane].storing.now()
            except Exception as error:
                errors.append(error)
        return errors


def _drawn(lines: list[Line], words: dict[int, Words]) -> Iterator[tuple[int, str]]:
    """What the lines say, each up to its own end."""
    if not lines:
        return
    drawing = Drawing(lines)
    with contextlib.closing(drawing.tokens()) as tokens:
        for line, token in tokens:
            if text := words[line.lane].add(token):
                yield line.lane, text
            if words[line.lane].ended:
                drawing.end(line)
