"""The MegaContext tree: every token and every gist of one history, append-only, on TensorStore.

    with Tree.create("runs/history", TreeSpec(fanouts=(32, 8, 8), ...)) as tree:
        tree.append(tokens, {1: gists, 2: parents})
    tree = Tree.open("runs/history")
    tree.tokens(0, 64), tree.gather(1, np.array([0, 1]))

The commit protocol (design: law 6). To open for writing is to take the next epoch, by
compare-and-swap on HEAD, before anything else is written. The newest epoch owns the tree: the
writer before it learns at its next commit that it was succeeded, and nothing it wrote since is
ever readable, because a writer's rows go to its own epoch's arrays and only HEAD makes them part
of the tree. A commit waits until its rows are stored, then replaces HEAD atomically. Arrays and
their layout: mctx/tree/arrays.py; HEAD: mctx/tree/head.py.
"""

import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from mctx.tree import arrays as stored
from mctx.tree.arrays import Arrays
from mctx.tree.head import Head, HeadRecord, TreeError, TreeSpec, extended
from mctx.tree.mirror import Mirror, Rows

__all__ = ["Tree", "TreeError", "TreeSpec"]

MAX_BLOCKS = 2**31  # a node's index is an int32 on the device


class _State(NamedTuple):
    """What can be read through one handle; replaced as one, so readers in threads see either."""

    head: Head
    pending: list[Rows]  # by level, as stored: appended here, not yet committed

    @classmethod
    def at(cls, head: Head) -> "_State":
        rows = [
            Rows(stored.row_shape(head.spec, level), stored.row_dtype(level))
            for level in range(head.spec.levels + 1)
        ]
        return cls(head, rows)

    def rows(self, level: int) -> int:
        """Tokens for level 0, gists above."""
        return self.head.count(level) + len(self.pending[level])


class Tree:
    """One history; made by `Tree.create` or `Tree.open`.

    Every error is a `TreeError`, a `UserError` with one sentence. One thread may append and
    commit while others read.
    """

    def __init__(self, uri: str, kvstore: ts.KvStore, head: Head, writable: bool):
        spec = head.spec
        self.uri = uri
        self._state = _State.at(head)
        self._writable = writable
        self._record = HeadRecord(kvstore, uri)
        self._arrays = Arrays(kvstore, uri, spec)
        self._mirror = Mirror(spec.levels, stored.row_shape(spec, 1), stored.row_dtype(1))
        self._next_row = [0] * (spec.levels + 1)  # in this epoch's arrays, which start empty

    @classmethod
    def create(cls, uri: str | os.PathLike, spec: TreeSpec) -> "Tree":
        """A new, empty tree, open for writing. TreeError when one is there already."""
        uri = os.fspath(uri)
        kvstore = stored.open_kvstore(uri)
        record = HeadRecord(kvstore, uri)
        head, generation = record.read()
        if head is not None:
            raise TreeError(f"There is a tree at {uri} already; open it or choose another path.")
        if stored.has_remains(kvstore, uri):
            raise TreeError(f"{uri} holds parts of a tree without its HEAD; choose an empty path.")
        empty = Head(spec, epoch=0, writer="", extents=((),) * (spec.levels + 1))
        return cls(uri, kvstore, _take(record, empty, generation, uri), writable=True)

    @classmethod
    def open(
        cls, uri: str | os.PathLike, mode: str = "r", fingerprint: str | None = None
    ) -> "Tree":
        """An existing tree, mode 'r' to read or 'w' to read and append.

        'w' takes the tree over: an older writer is refused at its next commit. `fingerprint`, if
        given, must be the one that the tree was created with. TreeError when there is no tree, or
        a damaged one, or one of a newer format or of other models.
        """
        if mode not in ("r", "w"):
            raise TreeError(f"A tree is opened with mode 'r' or 'w', not {mode!r}.")
        uri = os.fspath(uri)
        kvstore = stored.open_kvstore(uri)
        record = HeadRecord(kvstore, uri)
        head, generation = record.read()
        if head is None:
            raise TreeError(f"There is no MegaContext tree at {uri}; check the path or create one.")
        if fingerprint is not None and fingerprint != head.spec.fingerprint:
            raise TreeError(
                f"The gists of {uri} were made by models {head.spec.fingerprint!r}, not by "
                f"{fingerprint!r}; use those models or ingest into a new tree."
            )
        if mode == "w":
            head = _take(record, head, generation, uri)
        return cls(uri, kvstore, head, writable=mode == "w")

    @classmethod
    def exists(cls, uri: str | os.PathLike) -> bool:
        """Whether there is a tree to open; TreeError when its HEAD is there but damaged."""
        uri = os.fspath(uri)
        return HeadRecord(stored.open_kvstore(uri), uri).read()[0] is not None

    @property
    def spec(self) -> TreeSpec:
        return self._state.head.spec

    @property
    def length(self) -> int:
        """Tokens: the committed ones and those appended here since."""
        return self._state.rows(0)

    @property
    def blocks(self) -> int:
        """Complete blocks of K_1 tokens."""
        return self.length // self.spec.fanouts[0]

    def count(self, level: int) -> int:
        """Nodes of a level: complete blocks at level 0, gists above."""
        self._check_level(level, lowest=0)
        return self._state.rows(level) if level else self.blocks

    def append(self, tokens: np.ndarray, gists: Mapping[int, np.ndarray] | None = None) -> None:
        """Add tokens, and to each level the gists that follow those it has; `commit` stores them.

        tokens: integers [n], any n. gists: level → float [m, slots, gist_width], the next m nodes
        of that level, whose tokens must be in the tree by now. They are kept as bfloat16.
        """
        self._check_writable()
        tokens = self._checked_tokens(tokens)
        length = self.length + len(tokens)
        bits = {
            level: self._checked_gists(level, values, length)
            for level, values in (gists or {}).items()
        }
        for level, rows in ({0: tokens} | bits).items():
            self._state.pending[level].extend(rows)

    def commit(self) -> None:
        """Make all that was appended part of the tree, durably and at once.

        TreeError when another writer has taken the tree over, or a row cannot be stored; the tree
        is then as it was.
        """
        self._check_writable()
        head, pending = self._state
        extents, waits = list(head.extents), []
        for level, rows in enumerate(pending):
            if len(rows):
                row = self._next_row[level]
                waits.append(self._arrays.write(level, head.epoch, row, rows.values))
                extents[level] = extended(extents[level], head.epoch, row, len(rows))
        if not waits:
            return
        for wait in waits:
            wait()
        self._publish(replace(head, extents=tuple(extents)))
        for level, rows in enumerate(pending):
            self._next_row[level] += len(rows)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) → int32 [stop - start]."""
        if not 0 <= start <= stop <= self.length:
            raise TreeError(
                f"Tokens {start} to {stop} were asked of {self.uri}, which holds {self.length}."
            )
        head, pending = self._state
        committed = head.count(0)
        old = self._arrays.read_range(
            0, head.extents[0], min(start, committed), min(stop, committed)
        )
        new = pending[0].values[max(start - committed, 0) : max(stop - committed, 0)]
        return np.concatenate([old, new])

    def gather(self, level: int, indices: np.ndarray) -> np.ndarray:
        """Gists of nodes (level, indices) → float32 [n, slots, gist_width].

        From the host mirror; what it lacks is read in one vectorised read.
        """
        self._check_level(level, lowest=1)
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.count(level):
            raise TreeError(
                f"Gists {indices.min()} to {indices.max()} of level {level} were asked of "
                f"{self.uri}, which holds {self.count(level)}."
            )
        head, pending = self._state
        extents, committed = head.extents[level], head.count(level)
        old = indices < committed
        bits = np.empty((len(indices), *stored.row_shape(self.spec, level)), np.uint16)
        bits[old] = self._mirror.gather(
            level, indices[old], lambda missing: self._arrays.read_rows(level, extents, missing)
        )
        bits[~old] = pending[level].values[indices[~old] - committed]
        return stored.from_bits(bits)

    def refresh(self) -> bool:
        """See what a live writer has committed since; True when there is more to read.

        A writer's own handle has nothing to see; TreeError when it was taken over, or when
        another tree lies at its place.
        """
        head, known = self._record.read()[0], self._state.head
        if head is None or head.spec != known.spec or head.epoch < known.epoch:
            raise TreeError(f"The tree at {self.uri} was removed or replaced; open it again.")
        if self._writable:
            self._check_own(head)
            return False
        self._state = _State.at(head)
        return head.extents != known.extents

    def stats(self) -> dict:
        """Facts for a person: counts of nodes and stored bytes by level, and what made the tree.

        `bytes` are those of the rows (nothing is compressed; checksums add about 0.02 %).
        """
        head, _ = self._state
        levels = range(self.spec.levels + 1)
        return {
            "uri": self.uri,
            "fanouts": self.spec.fanouts,
            "slots": self.spec.slots,
            "gist_width": self.spec.gist_width,
            "vocab_size": self.spec.vocab_size,
            "fingerprint": self.spec.fingerprint,
            "epoch": head.epoch,
            "length": self.length,
            "uncommitted": self.length - head.count(0),
            "counts": {level: self.count(level) for level in levels},
            "bytes": {
                level: self._state.rows(level) * stored.row_bytes(self.spec, level)
                for level in levels
            },
        }

    def close(self) -> None:
        """End writing. What was appended and not committed is dropped."""
        self._writable = False
        self._state = _State.at(self._state.head)

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Commit, unless an error is on its way out; then close."""
        try:
            if kind is None and self._writable:
                self.commit()
        finally:
            self.close()

    def _publish(self, head: Head) -> None:
        """Replace HEAD by `head` if this handle still owns the tree."""
        current, generation = self._record.read()
        self._check_own(current)
        if not self._record.replace(head, generation):
            self._check_own(None)
        self._state = _State.at(head)

    def _check_own(self, current: Head | None) -> None:
        if current is None or current.writer != self._state.head.writer:
            raise TreeError(
                f"Another writer has taken over {self.uri} and nothing appended here since the "
                "last commit was kept; open the tree again to go on from its state."
            )

    def _check_writable(self) -> None:
        if not self._writable:
            raise TreeError(f"{self.uri} is not open for writing; open it with mode 'w'.")

    def _check_level(self, level: int, lowest: int) -> None:
        if not lowest <= level <= self.spec.levels:
            raise TreeError(
                f"Level {level} was asked of {self.uri}, which has {lowest} to {self.spec.levels}."
            )

    def _checked_tokens(self, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise TreeError(
                f"Tokens must be integers [n], not {tokens.dtype} {list(tokens.shape)}."
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.spec.vocab_size:
            raise TreeError(
                f"Tokens {tokens.min()} to {tokens.max()} do not fit the tree's vocabulary of "
                f"{self.spec.vocab_size}; use the tokenizer that it was made with."
            )
        if self.length + len(tokens) > MAX_BLOCKS * self.spec.fanouts[0]:
            raise TreeError(
                f"{self.uri} would pass 2**31 blocks, the most a tree can hold; start another."
            )
        return tokens

    def _checked_gists(self, level: int, values: np.ndarray, length: int) -> np.ndarray:
        """Gists of a level → the stored bits, when they fit a tree of `length` tokens."""
        self._check_level(level, lowest=1)
        values = np.asarray(values, np.float32)
        shape = stored.row_shape(self.spec, level)
        if values.shape[1:] != shape or not values.ndim:
            raise TreeError(
                f"Gists of level {level} must be [m, {shape[0]}, {shape[1]}], "
                f"not {list(values.shape)}."
            )
        if not np.isfinite(values).all():
            raise TreeError(f"Gists of level {level} hold NaN or infinity and would stay so.")
        have, most = self._state.rows(level) + len(values), length // self.spec.span(level)
        if have > most:
            raise TreeError(
                f"{have} gists of level {level} were appended to {length} tokens, "
                f"which make {most} complete nodes."
            )
        return stored.to_bits(values)


def _take(record: HeadRecord, head: Head, generation: bytes, uri: str) -> Head:
    """HEAD under a new epoch of our own, published before anything else is written."""
    taken = head.taken_by(uuid.uuid4().hex)
    if not record.replace(taken, generation):
        raise TreeError(f"Another writer opened {uri} at the same moment; open it again.")
    return taken
