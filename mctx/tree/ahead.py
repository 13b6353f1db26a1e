"""Writing what was staged: by the commit, or, where much comes at once, ahead of it.

A row has its place in the writer's epoch from the moment it is staged, and only HEAD makes it part
of the tree. So a writer of much need not wait for its commit: shards that are full are written as
soon as they are, while an earlier commit is still being published, and the disk has no pause. What
is stored and never committed is nobody's.
"""

import contextlib
from collections.abc import Callable, Sequence

from mctx.tree.arrays import Arrays
from mctx.tree.head import TreeError
from mctx.tree.state import State

Wait = Callable[[], None]


class Ahead:
    """The staged rows of one writer on their way to its epoch's arrays.

    Not thread-safe: whoever calls `begin`, `claim` and `forget` holds the tree's lock.
    """

    def __init__(self, arrays: Arrays):
        self._arrays = arrays
        levels = arrays.spec.levels + 1
        self._ends = [0] * levels  # rows of our epoch's arrays below which writing has begun
        self._begun: list[list[Wait]] = [[] for _ in range(levels)]  # and no commit has claimed

    def begin(self, state: State) -> None:
        """Starts to write the staged rows that fill shards; an error is left for the commit."""
        full = []
        for level, (rows, first) in enumerate(zip(state.pending, state.first, strict=True)):
            shard, start = self._arrays.shard_rows(level), max(self._ends[level], first)
            end = (first + len(rows)) // shard * shard
            if end > start:
                full.append((level, start, end, rows.parts(start - first, end - first)))
        with contextlib.suppress(TreeError):
            self._arrays.create(state.head.epoch, [level for level, *_ in full])
            for level, start, end, parts in full:
                wait = self._arrays.write(level, state.head.epoch, start, *parts)
                self._begun[level].append(wait)
                self._ends[level] = end

    def claim(self, state: State, lengths: Sequence[int]) -> Wait:
        """For a commit of the first `lengths` staged rows, while no other is under way.

        Returns:
          A function that writes what was not begun and waits until all of them are stored.
        """
        begun, rest = [], []
        for level, (length, first) in enumerate(zip(lengths, state.first, strict=True)):
            start, stop = max(self._ends[level], first), first + length
            if start < stop:
                rest.append((level, start, state.pending[level].parts(start - first, length)))
            begun += self._begun[level]
            self._begun[level], self._ends[level] = [], max(start, stop)

        def store() -> None:
            epoch = state.head.epoch
            self._arrays.create(epoch, [level for level, _, _ in rest])
            begun.extend(self._arrays.write(level, epoch, at, *parts) for level, at, parts in rest)
            for wait in begun:
                wait()

        return store

    def forget(self) -> None:
        """Something could not be stored: all that is staged will be written again."""
        self._ends = [0] * len(self._ends)
        self._begun = [[] for _ in self._begun]

    def close(self) -> None:
        """Waits for what no commit will claim any more; whether it was stored is all the same."""
        for wait in (wait for each in self._begun for wait in each):
            with contextlib.suppress(TreeError):
                wait()
        self.forget()
