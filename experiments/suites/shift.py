"""The subject changes and comes back: how long until the focus does.

A session reads a text, another package's or author's, and the first one again; beside it one that
never left, on the same last tokens. Real sessions, streamed: lens, allocator and all.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.methods import Protocol
from experiments.methods.focused import tokens_config
from experiments.sessions import far_detail
from experiments.statistics import interval
from experiments.suites import Suite
from experiments.suites.segments import Segments
from experiments.suites.views import View, row, share
from mctx.errors import UserError
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened
from mctx.runtime import Session, focusing
from mctx.tree.ingest import Reader

LEFT, BY_RECENCY = "lens", "recency"  # sessions that were away, by what focuses
HALF = 0.5  # of the far detail from before the return is of the old subject: the focus is back
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Turn:
    """Sizes in blocks.

    Attributes:
      before, away: of the old subject, then of another. streamed: the end of either that is read
        token by token, so that the focus is where it goes by itself; the rest is ingested.
      back: of the old subject again. budget: of the sessions.
    """

    before: int = 128
    away: int = 128
    streamed: int = 16
    back: int = 16
    budget: int = 16

    def length(self, model: Wrapped) -> int:
        return (self.before + self.back) * model.gist.block

    def counted(self) -> list[int]:
        """Numbers of refocuses after the return at which it is told what is back."""
        return [k for k in (0, 1, 2, 4, 8, 16, 32) if k <= self.back]


STANDARD = Turn()


class Reading(NamedTuple):
    """Attributes:
    nll: [back], of each block after the return. far: after each of the `back` + 1 refocuses from
      the return on, the blocks shown as tokens that are neither sinks nor recent.
    """

    nll: np.ndarray
    far: list[np.ndarray]


def measure(
    opened: Opened, segments: Segments, seed: int, turn: Turn = STANDARD
) -> dict[str, list[dict]]:
    """Rows of the views back, focus, same, nll and after, in one result.

    Raises:
      UserError: all segments are of one package or author.
    """
    if len(set(segments.groups)) < 2:
        raise UserError("a subject changes between two packages or authors: give more text.")
    reader, block = Reader(opened.model, opened.params), opened.model.gist.block
    kept: dict[str, list] = {LEFT: [], BY_RECENCY: [], "stayed": []}
    for tokens, other in zip(segments.tokens, segments.partners, strict=True):
        first, again = np.split(tokens, [turn.before * block])
        between = segments.tokens[other][: turn.away * block]
        read = _Read(opened, reader, turn)
        kept[LEFT].append(read(np.concatenate([first, between]), again, None))
        kept[BY_RECENCY].append(read(np.concatenate([first, between]), again, focusing.recency))
        kept["stayed"].append(read(first, again, None))
    return {"shift": _rows(kept, segments.units, seed, turn)}


@dataclasses.dataclass
class _Read:
    """Streams a history and what comes after it through a session of its own."""

    opened: Opened
    reader: Reader
    turn: Turn

    def __call__(self, history: np.ndarray, again: np.ndarray, worths: Callable | None) -> Reading:
        model, block = self.opened.model, self.opened.model.gist.block
        config = tokens_config(model, Protocol(budget=self.turn.budget * block))
        uri = f"memory://shift-{os.getpid()}-{next(_numbers)}"
        session = Session(self.opened, uri, config, self.reader, worths=worths)
        session.ingest(history[: -self.turn.streamed * block])
        session.predict(history[-self.turn.streamed * block :])
        far = [far_detail(session)]
        session.on_refocus = lambda session, report: far.append(far_detail(session))
        nll = session.predict(again)
        return Reading(nll.reshape(self.turn.back, block).mean(axis=1), far)


# -- what is told of it ----------------------------------------------------------------------


def _rows(kept: dict[str, list[Reading]], groups: np.ndarray, seed: int, turn: Turn) -> list[dict]:
    stayed, rows = kept["stayed"], []

    def tell(view, what, k, each):
        shares = VIEWS[view].unit == SHARE
        told = share(each, seed, groups) if shares else interval(each, groups, seed)
        rows.append(row(view, what, VIEWS[view].unit, told, len(each), refocus=k))

    for name in (LEFT, BY_RECENCY):
        nll = np.array([a.nll - b.nll for a, b in zip(kept[name], stayed, strict=True)])
        old = np.array([[old_share(far, turn) for far in one.far] for one in kept[name]])
        for k in turn.counted():
            by_then = (old[:, : k + 1] >= HALF).any(axis=1).astype(float)
            tell("back", name, k, by_then)
            tell("focus", name, k, old[:, k])
            if k < turn.back:
                tell("after", name, k, nll[:, k:].mean(axis=1))
        for k in range(turn.back):
            tell("nll", name, k, nll[:, k])
    same = np.array([
        [common(b, a, turn) for a, b in zip(one.far, two.far, strict=True)]
        for one, two in zip(kept[LEFT], stayed, strict=True)
    ])  # fmt: skip
    for k in turn.counted():
        tell("same", LEFT, k, same[:, k])
    return rows


def old_share(far: np.ndarray, turn: Turn) -> float:
    """Of the far blocks in focus that were there before the return, the share that is of the old
    subject; 0 of none. What is read after the return would come into focus by reading on alone."""
    there = far[far < turn.before + turn.away]
    return float((there < turn.before).mean()) if len(there) else 0.0


def common(wanted: np.ndarray, far: np.ndarray, turn: Turn) -> float:
    """Of the blocks before the change that are `wanted`, the share that is in focus, too."""
    wanted = wanted[wanted < turn.before]
    return float(np.isin(wanted, far).mean()) if len(wanted) else 1.0


NATS, SHARE = "nats/token", "share"
VIEWS = {
    "back": View("Texts whose focus is back by then", "refocus", SHARE),
    "focus": View(
        "Far detail from before the return that is of the old subject", "refocus", SHARE, None,
        ("lines",),
    ),
    "same": View("Detail of a session that never left, in focus here too", "refocus", SHARE),
    "nll": View(
        "ΔNLL against a session that never left, block by block", "refocus", NATS, None,
        ("lines",), intervals=False, better="lower",
    ),
    "after": View(
        "ΔNLL against a session that never left, of all tokens from then on", "refocus", NATS,
        better="lower",
    ),
}  # fmt: skip
SUITE = Suite(
    ("base", "gistnet", "lensnet"),
    STANDARD.length,
    measure,
    (
        "Sessions of 512 entries read 4,096 tokens of a package or author, 4,096 of another, and "
        "512 of the first; refocus 0 is the last before the return, and one follows every 32 "
        "tokens. One that never left reads the same last tokens behind the first 4,096.",
        "Far detail: blocks shown as tokens that are neither sinks nor among the last four. A "
        "focus is back once half of its far detail, what is read after the return left out, is of "
        "the old subject; it counts as back from then on.",
    ),
    segments=12,
    views=VIEWS,
)
