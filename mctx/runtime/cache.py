"""Keys and values of blocks from their ingest windows, in host memory, least recently used out.

A missing block is remade exactly by reading its one window again (law 8), so the cache may be
dropped at any moment and changes no output.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mctx.models.base import Rows
from mctx.tree.documents import last_live, windows_of
from mctx.tree.ingest import Blocks, Reader
from mctx.tree.store import Tree

Address = tuple[int, int, int]


class BlockCache:
    """Rows of blocks, at most `limit` bytes of them beyond those just asked for.

    They are kept under the addresses of the blocks' tokens: a document that is replaced has new
    ones, so nothing here can go stale.
    """

    def __init__(self, reader: Reader, tree: Tree, limit: int):
        self._reader, self._tree, self._limit = reader, tree, limit
        self._held: OrderedDict[Address, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._last_states: tuple[tuple, np.ndarray] | None = None
        self.windows_read = 0

    def states(self, blocks: int, want: int) -> np.ndarray:
        """Window states of the last `want` live tokens before a block's border: [L + 1, want, D].

        Zeros stand in front of a history that is shorter. The last answer is kept.
        """
        block = self._reader.model.gist.block
        last = last_live(self._tree.dead, blocks, -(-want // block))
        asked = (want, *self._addresses(last))
        if self._last_states is None or self._last_states[0] != asked:
            self._last_states = asked, self._read_states(last, want)
        return self._last_states[1]

    def _read_states(self, last, want):
        model = self._reader.model
        shape = (model.base.n_layers + 1, want, model.base.d_model)
        if not len(last):
            return np.zeros(shape, np.float32)
        block = model.gist.block
        start, stop, tokens = self._windows(last)
        _, states, _ = self._reader.full_windows(tokens.reshape(-1))  # [n, L + 1, window, D]
        window = np.searchsorted(start, last * block, side="right") - 1
        offset = last * block - start[window]
        parts = [states[w, :, at : at + block] for w, at in zip(window, offset, strict=True)]
        return np.concatenate([np.zeros(shape, np.float32), *parts], axis=1)[:, -want:]

    def put(self, blocks: Blocks) -> None:
        addresses = self._addresses(blocks.first + np.arange(len(blocks.k)))
        for address, k, v in zip(addresses, blocks.k, blocks.v, strict=True):
            self._keep(address, k, v)
        self._trim()

    def get(self, indices: np.ndarray) -> Rows:
        """Blocks `indices` [n] -> [n, L, K_1, K, H]; windows that miss are read in one batch."""
        addresses = self._addresses(indices)
        missing = [i for i, at in zip(indices, addresses, strict=True) if at not in self._held]
        if missing:
            self._read_missing(np.array(missing, np.int64))
        found = []
        for address in addresses:
            self._held.move_to_end(address)
            found.append(self._held[address])
        self._trim()
        return Rows(*(np.stack(parts) for parts in zip(*found, strict=True)))

    def drop(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._last_states = None

    def _addresses(self, blocks) -> list[Address]:
        tokens = np.asarray(blocks, np.int64) * self._reader.model.gist.block
        return [tuple(row) for row in self._tree.addresses(0, tokens).tolist()]

    def _windows(self, blocks):
        """The windows that hold `blocks`: start [n] and stop [n], tokens [n, window]."""
        size, block = self._reader.model.window, self._reader.model.gist.block
        start, stop = windows_of(self._tree.borders, blocks * block, size)
        start, first = np.unique(start, return_index=True)
        stop = np.minimum(stop[first], self._tree.blocks * block)
        # What is not complete yet is padded, which no earlier block can see.
        within = start[:, None] // block + np.arange(size // block)  # [n, blocks of a window]
        there = within < stop[:, None] // block
        tokens = np.zeros((*within.shape, block), np.int32)
        tokens[there] = self._tree.token_blocks(within[there])
        return start, stop, tokens.reshape(len(start), size)

    def _read_missing(self, missing):
        """Whole windows, and of those every block that is there."""
        block = self._reader.model.gist.block
        start, stop, tokens = self._windows(missing)
        rows, _, _ = self._reader.full_windows(tokens.reshape(-1))
        self.windows_read += len(tokens)
        for i, (a, b) in enumerate(zip(start // block, stop // block, strict=True)):
            k, v = (_by_block(x[i], block)[: b - a] for x in rows)
            for address, *row in zip(self._addresses(np.arange(a, b)), k, v, strict=True):
                self._keep(address, *row)

    def _keep(self, address, k, v):
        """Copies: a view would keep alive all that was read with it."""
        self._held[address] = (k.copy(), v.copy())
        self._held.move_to_end(address)

    def _trim(self):
        while self._held and len(self._held) * self._bytes() > self._limit:
            self._held.popitem(last=False)

    def _bytes(self):
        k, v = next(iter(self._held.values()))
        return k.nbytes + v.nbytes


def _by_block(rows: np.ndarray, block: int) -> np.ndarray:
    """[L, window, K, H] -> [window / K_1, L, K_1, K, H]."""
    return rows.reshape(len(rows), -1, block, *rows.shape[2:]).swapaxes(0, 1)
