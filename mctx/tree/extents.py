"""Where logical rows lie: arithmetic on extents, the runs of rows that a HEAD lists.

Logical rows are what a history counts; a row is stored at (epoch, row) of its level's arrays, and
what is stored at an address never changes. Rows of epoch 0 are *dead*: they keep their place in
the history, are stored nowhere, and read as zeros.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

DEAD = 0  # the epoch of rows that are stored nowhere


class Extent(NamedTuple):
    """Logical rows [start, start + length) are rows [row, row + length) of one epoch's array."""

    start: int
    epoch: int
    row: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class Extents:
    """A level's extents, in order of start and without a gap; immutable.

    table: int64 [n, 4], the fields of `Extent`.
    """

    def __init__(self, extents: Iterable[Extent] | np.ndarray = ()):
        if not isinstance(extents, np.ndarray):
            extents = np.array(list(extents), np.int64)
        self.table = extents.reshape(-1, len(Extent._fields))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Extent]:
        return (Extent(*row) for row in self.table.tolist())

    def __getitem__(self, position: int) -> Extent:
        return Extent(*self.table[position].tolist())

    def __eq__(self, other) -> bool:
        return np.array_equal(self.table, Extents.of(other).table)

    def __repr__(self) -> str:
        return f"Extents({self.table.tolist()})"

    @classmethod
    def of(cls, extents) -> "Extents":
        """`extents`, whatever sequence they are in."""
        return extents if isinstance(extents, cls) else cls(extents)


def count(extents: Extents) -> int:
    """Logical rows in all."""
    table = Extents.of(extents).table
    return int(table[-1, 0] + table[-1, 3]) if len(table) else 0


def extended(extents: Extents, epoch: int, row: int, length: int) -> Extents:
    """`extents` and `length` rows more; neighbours merge, so a long session stays one extent."""
    extents = Extents.of(extents)
    new = np.array([[count(extents), epoch, row, length]], np.int64)
    return Extents(_joined(extents.table, new)) if length else extents


def spliced(extents: Extents, start: int, epoch: int, row: int, length: int) -> Extents:
    """`extents` with the logical rows [start, start + length) at another place.

    `start` is at most their count; rows past it are new ones.
    """
    extents = Extents.of(extents)
    if start == count(extents) or not length:
        return extended(extents, epoch, row, length)
    new = np.array([[start, epoch, row, length]], np.int64)
    before, after = _cut(extents, 0, start), _cut(extents, start + length, count(extents))
    return Extents(_joined(_joined(before, new), after))


def pieces(extents: Extents, start: int, stop: int) -> list[Extent]:
    """The parts of `extents` that make up logical rows [start, stop)."""
    return list(Extents(_cut(Extents.of(extents), start, stop)))


def first_rows(extents: Extents, length: int) -> Extents:
    """The extents of the first `length` logical rows."""
    return Extents(_cut(Extents.of(extents), 0, length))


def locate(extents: Extents, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where logical rows lie: (epoch [n], row [n])."""
    table = Extents.of(extents).table
    if len(table) == 1:
        return np.full(len(indices), table[0, 1]), indices + table[0, 2]
    start, epoch, row, _ = table[np.searchsorted(table[:, 0], indices, side="right") - 1].T
    return epoch, np.where(epoch == DEAD, 0, row + indices - start)


def stored_rows(extents: Extents) -> dict[int, int]:
    """How many rows of each epoch's array are part of the history."""
    table = Extents.of(extents).table
    epochs, which = np.unique(table[:, 1], return_inverse=True)
    rows = np.bincount(which.ravel(), table[:, 3], len(epochs))
    return {int(e): int(n) for e, n in zip(epochs, rows, strict=True) if e != DEAD}


def common(a: Extents, b: Extents) -> int:
    """How many extents two lists begin with alike."""
    a, b = a.table, b.table
    size = min(len(a), len(b))
    differ = np.any(a[:size] != b[:size], axis=1)
    return int(np.argmax(differ)) if differ.any() else size


def _cut(extents: Extents, start: int, stop: int) -> np.ndarray:
    """The table of logical rows [start, stop)."""
    if start >= stop:
        return extents.table[:0]
    first = np.searchsorted(extents.table[:, 0], start, side="right") - 1
    last = np.searchsorted(extents.table[:, 0], stop, side="left")
    table = extents.table[max(first, 0) : last].copy()
    if len(table):
        _shorten(table, start, stop)
    return table


def _shorten(table: np.ndarray, start: int, stop: int) -> None:
    """Cuts the first and the last extent of a table at the borders, in place."""
    table[-1, 3] = min(stop, table[-1].take((0, 3)).sum()) - table[-1, 0]
    skip = max(start - table[0, 0], 0)
    table[0] += skip * np.array([1, 0, table[0, 1] != DEAD, -1])


def _joined(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Two tables, one behind the other, as one; rows that lie side by side become one extent."""
    if not (len(before) and len(after)):
        return before if len(before) else after
    last, first = before[-1], after[0]
    dead = first[1] == DEAD
    if last[1] != first[1] or not (dead or last[2] + last[3] == first[2]):
        return np.concatenate([before, after])
    merged = last + (0, 0, 0, first[3])
    return np.concatenate([before[:-1], merged[None], after[1:]])
