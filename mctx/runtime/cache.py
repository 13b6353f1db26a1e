"""Keys and values of blocks from their ingest windows, in host memory, least recently used out.

A missing block is remade exactly by reading its one window again (law 8), so the cache may be
dropped at any moment and changes no output.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mctx.models.base import Rows
from mctx.tree.ingest import Blocks, Reader
from mctx.tree.store import Tree


class BlockCache:
    """Rows of blocks, at most `limit` bytes of them beyond those just asked for."""

    def __init__(self, reader: Reader, tree: Tree, limit: int):
        self._reader, self._tree, self._limit = reader, tree, limit
        self._held: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._last_states: tuple[tuple[int, int], np.ndarray] | None = None
        self.windows_read = 0

    def states(self, blocks: int, want: int) -> np.ndarray:
        """Window states of the last `want` tokens before a block's border: [L + 1, want, D].

        Zeros stand in front of a history that is shorter. The last answer is kept.
        """
        if self._last_states is None or self._last_states[0] != (blocks, want):
            self._last_states = (blocks, want), self._read_states(blocks, want)
        return self._last_states[1]

    def _read_states(self, blocks, want):
        model = self._reader.model
        size, stop = model.window, blocks * model.gist.block
        start = max(stop - want, 0) // size * size
        shape = (model.base.n_layers + 1, want, model.base.d_model)
        states = np.zeros(shape, np.float32)
        if stop:
            tokens = self._tree.tokens(start, stop)
            padded = np.pad(tokens, (0, -len(tokens) % size))
            _, found, _ = self._reader.full_windows(padded)
            joined = found.swapaxes(0, 1).reshape(shape[0], -1, shape[2])
            states = np.concatenate([states, joined[:, : len(tokens)]], axis=1)[:, -want:]
        return states

    def put(self, blocks: Blocks) -> None:
        for i in range(len(blocks.k)):
            self._keep(blocks.first + i, blocks.k[i], blocks.v[i])
        self._trim()

    def get(self, indices: np.ndarray) -> Rows:
        """Blocks `indices` [n] -> [n, L, K_1, K, H]; windows that miss are read in one batch."""
        self._read_missing(indices)
        found = []
        for index in indices.tolist():
            self._held.move_to_end(index)
            found.append(self._held[index])
        self._trim()
        return Rows(*(np.stack(parts) for parts in zip(*found, strict=True)))

    def drop(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._last_states = None

    def _read_missing(self, indices):
        """Whole windows: what is not complete yet is padded, which no earlier block can see."""
        missing = [i for i in indices.tolist() if i not in self._held]
        if not missing:
            return
        size, block = self._reader.model.window, self._reader.model.gist.block
        per = size // block
        windows = sorted({i // per for i in missing})
        length = self._tree.blocks * block
        tokens = np.zeros((len(windows), size), np.int32)
        for row, window in zip(tokens, windows, strict=True):
            stop = min((window + 1) * size, length)
            row[: stop - window * size] = self._tree.tokens(window * size, stop)
        rows, _, _ = self._reader.full_windows(tokens.reshape(-1))
        self.windows_read += len(windows)
        for i, window in enumerate(windows):
            k, v = (x[i].reshape(x.shape[1], per, block, *x.shape[3:]).swapaxes(0, 1) for x in rows)
            for j in range(min(per, self._tree.blocks - window * per)):
                self._keep(window * per + j, k[j], v[j])

    def _keep(self, index, k, v):
        """Copies: a view would keep alive all that was read with it."""
        self._held[index] = (k.copy(), v.copy())
        self._held.move_to_end(index)

    def _trim(self):
        while self._held and len(self._held) * self._bytes() > self._limit:
            self._held.popitem(last=False)

    def _bytes(self):
        k, v = next(iter(self._held.values()))
        return k.nbytes + v.nbytes
