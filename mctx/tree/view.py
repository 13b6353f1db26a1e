"""One state of a tree, to be read: tokens and gists by their place in the history."""

import functools
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from mctx.tree import arrays as stored
from mctx.tree import checks
from mctx.tree.arrays import Arrays
from mctx.tree.documents import Documents
from mctx.tree.extents import DEAD, Extent, Extents, locate, pieces, stored_rows
from mctx.tree.head import Head, TreeError, TreeSpec
from mctx.tree.mirror import Mirror, MirrorConfig
from mctx.tree.state import State


class View:
    """What can be read of a tree: what is committed, and what was staged through this handle."""

    def __init__(
        self, uri: str, arrays: Arrays, state: State, mirror: MirrorConfig | None = None
    ):
        self.uri = uri
        self._arrays = arrays
        self._state = state
        self._mirror = Mirror(arrays, mirror)

    @property
    def head(self) -> Head:
        """What is committed, as far as this handle knows."""
        return self._state.head

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

    @property
    def documents(self) -> Documents:
        """Named stretches of the history: `mctx.tree.documents`."""
        return self._state.documents

    @property
    def dead(self) -> np.ndarray:
        """Runs of dead blocks [start, stop), rising and apart: int64 [r, 2]."""
        return self.documents.dead(self.spec.fanouts[0])

    @property
    def borders(self) -> np.ndarray:
        """Tokens at which the grid of ingest windows starts anew, rising, 0 first: int64 [m]."""
        return self.documents.borders

    def count(self, level: int) -> int:
        """Nodes of a level: complete blocks at level 0, gists above."""
        checks.level(self.uri, self.spec, level, lowest=0)
        return self._state.rows(level) if level else self.blocks

    def extents(self, level: int) -> Extents:
        """Where the level's rows lie, those that are not committed yet included."""
        return self._state.extents[level]

    def addresses(self, level: int, indices: np.ndarray) -> np.ndarray:
        """Where rows lie: int64 [n, 3] of (tree, epoch, row); `tree` tells mounted ones apart.

        What is at an address never changes, so it is the key to keep copies under.
        """
        epochs, rows = locate(self._state.extents[level], np.asarray(indices, np.int64))
        return np.stack([np.zeros_like(rows), epochs, rows], axis=1)

    def stats(self) -> dict:
        """Facts for a person: counts of nodes and stored bytes by level, and what made the tree.

        `bytes` are those of the rows that the history refers to (nothing is compressed; checksums
        add about 0.02 %); `epochs`: how many writers' folders they lie in.
        """
        state, spec = self._state, self.spec
        levels = range(spec.levels + 1)
        by_epoch = {level: stored_rows(state.extents[level]) for level in levels}
        return {
            "uri": self.uri,
            "fanouts": spec.fanouts,
            "slots": spec.slots,
            "gist_width": spec.gist_width,
            "vocab_size": spec.vocab_size,
            "fingerprint": spec.fingerprint,
            "epoch": state.head.epoch,
            "epochs": len({epoch for rows in by_epoch.values() for epoch in rows}),
            "length": self.length,
            "uncommitted": sum(state.lengths()[:1]),
            "documents": len(state.documents),
            "dead_blocks": int(np.diff(self.dead).sum()),
            "counts": {level: self.count(level) for level in levels},
            "bytes": {
                level: sum(by_epoch[level].values()) * stored.row_bytes(spec, level)
                for level in levels
            },
        }

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) → int32 [stop - start]; dead ones are 0."""
        if not 0 <= start <= stop <= self.length:
            raise TreeError(
                f"Tokens {start} to {stop} were asked of {self.uri}, which holds {self.length}."
            )
        return self._reading(lambda state: self._range(state, 0, start, stop))

    def read_parts(self, level: int, parts: list[Extent]) -> list[np.ndarray]:
        """Committed rows by their addresses, as stored; nothing of them is kept."""
        return self._arrays.read_parts(level, parts)

    def gather(self, level: int, indices: np.ndarray) -> np.ndarray:
        """Gists of nodes (level, indices) → float32 [n, slots, gist_width]; dead ones are zeros.

        From the host mirror; what it lacks is read in one vectorised read.
        """
        indices = self._checked(level, indices, lowest=1)
        return self._reading(lambda state: self._gists(state, level, indices))

    def prefetch(self, level: int, indices: np.ndarray) -> Future | None:
        """Read gists that will be asked for into the mirror, in the background.

        Returns:
          What can be waited for; None where the background is busy with earlier ones.
        """
        indices, state = self._checked(level, indices, lowest=1), self._state
        epochs, rows = locate(state.extents[level], indices)
        old = _is_stored(state, level, epochs, rows)
        where = epochs[old], rows[old], indices[old]
        return self._mirror.prefetch(level, *where, functools.partial(_end, state, level))

    def token_blocks(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of blocks `indices` [n] → int32 [n, K_1], in one vectorised read."""
        indices = self._checked(0, indices, lowest=0)
        places = indices[:, None] * self.spec.fanouts[0] + np.arange(self.spec.fanouts[0])
        tokens = self._reading(lambda state: self._some_tokens(state, places.ravel()))
        return tokens.reshape(places.shape)

    def _checked(self, level: int, indices: np.ndarray, lowest: int) -> np.ndarray:
        checks.level(self.uri, self.spec, level, lowest)
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.count(level):
            raise TreeError(
                f"{'Gists' if level else 'Blocks'} {indices.min()} to {indices.max()} of level "
                f"{level} were asked of {self.uri}, which holds {self.count(level)}."
            )
        return indices

    def _reading(self, read: Callable[[State], np.ndarray]) -> np.ndarray:
        """What `read` makes of the state."""
        return read(self._state)

    def _range(self, state: State, level: int, start: int, stop: int) -> np.ndarray:
        """Logical rows [start, stop) → as stored."""
        shape = stored.row_shape(self.spec, level)
        values = np.zeros((stop - start, *shape), stored.row_dtype(level))
        parts = []
        for part in pieces(state.extents[level], start, stop):
            old = part.length  # rows of it that are stored
            if part.epoch == state.head.epoch:
                old = min(max(state.first[level] - part.row, 0), part.length)
            if old < part.length:
                row = part.row + old - state.first[level]
                new = state.pending[level].values[row : row + part.length - old]
                values[part.start + old - start : part.stop - start] = new
            if old and part.epoch != DEAD:
                parts.append(part._replace(length=old))
        for part, found in zip(parts, self._arrays.read_parts(level, parts), strict=True):
            values[part.start - start : part.stop - start] = found
        return values

    def _gists(self, state: State, level: int, indices: np.ndarray) -> np.ndarray:
        """Logical rows `indices` [n] → float32 [n, slots, gist_width]."""
        epochs, rows = locate(state.extents[level], indices)
        old, end = _is_stored(state, level, epochs, rows), functools.partial(_end, state, level)
        if old.all():
            return self._mirror.gather(level, epochs, rows, indices, end)
        gists = np.zeros((len(indices), *stored.row_shape(self.spec, level)), np.float32)
        gists[old] = self._mirror.gather(level, epochs[old], rows[old], indices[old], end)
        new = ~old & (epochs != DEAD)
        pending = state.pending[level].values[rows[new] - state.first[level]]
        gists[new] = stored.from_bits(pending)
        return gists

    def _some_tokens(self, state: State, indices: np.ndarray) -> np.ndarray:
        """Tokens at logical rows `indices` [n] → int32 [n]."""
        epochs, rows = locate(state.extents[0], indices)
        old = _is_stored(state, 0, epochs, rows)
        tokens = np.zeros(len(indices), np.int32)
        tokens[old] = self._arrays.read_rows(0, epochs[old], rows[old], indices[old])
        new = ~old & (epochs != DEAD)
        tokens[new] = state.pending[0].values[rows[new] - state.first[0]]
        return tokens


def _is_stored(state: State, level: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which addresses [n] are in the arrays: not the dead ones, nor what is only staged."""
    staged = (epochs == state.head.epoch) & (rows >= state.first[level])
    return ~staged & (epochs != DEAD)


def _end(state: State, level: int, epoch: int) -> int:
    """The row from which on an epoch's array must not be read: nothing may be there yet."""
    table = state.extents[level].table
    of_it = table[table[:, 1] == epoch]
    end = int((of_it[:, 2] + of_it[:, 3]).max())
    return min(end, state.first[level]) if epoch == state.head.epoch else end
