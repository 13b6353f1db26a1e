"""Reading ingest windows again: exactly what ingest made of a block, at any later time (law 8)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mctx.tree.documents import last_live, windows_of
from mctx.tree.ingest import Reader
from mctx.tree.store import Tree

Address = tuple[int, int, int]


class Found(NamedTuple):
    """Rows of one block, and where its tokens lie in the tree: k, v [L, K_1, K, H]."""

    address: Address
    k: np.ndarray
    v: np.ndarray


class Windows:
    """The windows of one tree. Safe to read from a second thread while the tree is written."""

    def __init__(self, reader: Reader, tree: Tree):
        self._reader, self._tree = reader, tree
        self._size, self._block = reader.model.window, reader.model.gist.block

    def addresses(self, blocks: np.ndarray) -> list[Address]:
        """Where the blocks' tokens lie: what is there never changes."""
        tokens = np.asarray(blocks, np.int64) * self._block
        return [tuple(row) for row in self._tree.addresses(0, tokens).tolist()]

    def read(self, blocks: np.ndarray) -> tuple[list[Found], int]:
        """Every block of the windows in which `blocks` [n] lie, and how many windows these are.

        All windows are read in one batch. What is replaced meanwhile is left out.
        """
        start, stop, _ = self._places(blocks)
        before = [self.addresses(np.arange(*ends)) for ends in self._ends(start, stop)]
        tokens = self._tokens(start, stop)
        rows, _, _ = self._reader.full_windows(tokens.reshape(-1))
        found = []
        for i, ends in enumerate(self._ends(start, stop)):
            k, v = (_by_block(x[i], self._block) for x in rows)
            now = self.addresses(np.arange(*ends))
            if now == before[i]:
                found += map(Found, now, k, v)
        return found, len(tokens)

    def states(self, blocks: int, want: int) -> np.ndarray:
        """Window states of the last `want` live tokens before a block's border: [L + 1, want, D].

        Zeros stand in front of a history that is shorter.
        """
        model, block = self._reader.model, self._block
        shape = (model.base.n_layers + 1, want, model.base.d_model)
        last = self.last(blocks, want)
        if not len(last):
            return np.zeros(shape, np.float32)
        start, stop, window = self._places(last)
        _, states, _ = self._reader.full_windows(self._tokens(start, stop).reshape(-1))
        states = np.asarray(states)  # [n, L + 1, window, D]
        offset = last * block - start[window]
        parts = [states[w, :, at : at + block] for w, at in zip(window, offset, strict=True)]
        return np.concatenate([np.zeros(shape, np.float32), *parts], axis=1)[:, -want:]

    def last(self, blocks: int, want: int) -> np.ndarray:
        """The blocks that hold the last `want` live tokens before a block's border, rising."""
        return last_live(self._tree.dead, blocks, -(-want // self._block))

    def _places(self, blocks):
        """The windows that hold `blocks`: start [n] and stop [n]; and each block's among them."""
        start, stop = windows_of(self._tree.borders, blocks * self._block, self._size)
        start, first, window = np.unique(start, return_index=True, return_inverse=True)
        return start, np.minimum(stop[first], self._tree.blocks * self._block), window

    def _ends(self, start, stop):
        return zip(start // self._block, stop // self._block, strict=True)

    def _tokens(self, start, stop):
        """[n, window]; what is not complete yet is padded, which no earlier block can see."""
        within = start[:, None] // self._block + np.arange(self._size // self._block)
        there = within < stop[:, None] // self._block  # [n, blocks of a window]
        tokens = np.zeros((*within.shape, self._block), np.int32)
        tokens[there] = self._tree.token_blocks(within[there])
        return tokens.reshape(len(start), self._size)


def _by_block(rows: np.ndarray, block: int) -> np.ndarray:
    """[L, window, K, H] -> [window / K_1, L, K_1, K, H]."""
    return rows.reshape(len(rows), -1, block, *rows.shape[2:]).swapaxes(0, 1)
