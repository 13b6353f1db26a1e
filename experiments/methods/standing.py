"""What every method is: a way to choose and make the entries that stand before a tail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mctx.models.wrapped import Wrapped
from mctx.runtime import rows
from mctx.runtime.rows import Buffer, Tail

if TYPE_CHECKING:
    from experiments.methods.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all methods of a comparison share.

    Attributes:
      budget: entries before the tail, sinks and recent ones among them. The shared prefix and the
        tail itself come on top, for every method.
      recent, sink: blocks that methods which choose always show.
      seed: of what is random.
      show: by level, whether nodes that are not chosen as tokens are shown as gists by the
        methods that choose blocks. Silent recovered more (RESULTS.md).
      candidates: blocks that a method which sees the future may choose from, 0 for all: labels
        of all of a long history cost a backward pass per 44 blocks.
    """

    budget: int = 512
    recent: int = 4
    sink: int = 1
    seed: int = 0
    show: tuple[bool, ...] = (True, False, False, False)
    candidates: int = 44

    def silence(self, model: Wrapped) -> tuple[bool, ...]:
        """`show` for this model's levels; levels it does not name are silent."""
        return tuple(level < len(self.show) and self.show[level] for level in _levels(model))


def _levels(model: Wrapped) -> range:
    return range(model.gist.levels + 1)


class Asked(NamedTuple):
    """What a method is told besides the history.

    Attributes:
      tail: the tokens to come, the first only read; None for methods that do not see the future.
      weights: [len(tail) - 1], how much each token counts when blocks are chosen; None likewise.
      support: token ranges of the history that hold what must be known, for `handed` alone.
      fits: whether the trained window holds the history and what is read behind it, for `full`.
    """

    tail: np.ndarray | None = None
    weights: np.ndarray | None = None
    support: tuple[tuple[int, int], ...] = ()
    fits: bool = True


class Standing(NamedTuple):
    """What stands before the tail.

    Attributes:
      buffer, tail: rows, and how what is read behind them is routed and merged.
      learned: merged by the learned merger. prefix_bias: 0, or `NEGATIVE` to hide the prefix.
      detailed: blocks shown as tokens, all of each, by any head that runs.
      scored: [len(tail) - 1] bool, the tokens that this standing may be scored on; None for all.
      flops: operations that choosing and making it took.
      session: which session's buffer it is, and so gone with its next refocus; None for its own.
    """

    buffer: Buffer
    tail: Tail
    learned: bool
    prefix_bias: np.float32
    detailed: np.ndarray
    scored: np.ndarray | None = None
    flops: float = 0.0
    session: Hashable | None = None

    @property
    def entries(self) -> int:
        """Entries before the tail, of all heads that run together."""
        return int(np.asarray(self.buffer.count).sum())


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to show a history.

    Attributes:
      stand: a generator of one or more `Standing`s, each used up before the next is made;
        of none where the method is not defined.
      items: checkpoint items that it needs.
      sees_future: chooses by the very tokens it is scored on: a bound, no competitor.
    """

    stand: Callable[[Scorer, Asked], Iterator[Standing]]
    items: tuple[str, ...] = ("base",)
    sees_future: bool = False


class Answer(NamedTuple):
    """Of the tokens after the first of a tail: NLL in nats, and whether greedy decoding would
    have said it: [len(tail) - 1] each."""

    nll: np.ndarray
    greedy: np.ndarray


def room(tokens: int, step: int) -> int:
    """The shape in which so many tokens are read: few shapes are compiled for many lengths."""
    size = step
    while size < tokens:
        size *= 2
    return size


def empty_tail(model: Wrapped, like: Tail | None, length: int) -> Tail:
    """Room for `length` tokens, routed like another tail; without one, a single head."""
    # Copies on the host: a call that adds to a tail uses up all of it.
    heads = np.zeros(1, np.int32) if like is None else np.asarray(like.heads)
    gate = np.zeros(1, np.float32) if like is None else np.asarray(like.gate)
    last = np.zeros(model.base.d_model, np.float32)
    return Tail(rows.empty_tail_rows(model, len(heads), length), np.int32(0), last, heads, gate)
