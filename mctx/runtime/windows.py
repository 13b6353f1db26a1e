"""Reading ingest windows again: exactly what ingest made of a block, at any later time (law 8)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mctx.models.base import Rows
from mctx.tree.documents import last_live, windows_of
from mctx.tree.ingest import Later, Reader
from mctx.tree.store import Tree

Address = tuple[int, int, int]


class Found(NamedTuple):
    """Rows of one block, and where its tokens lie in the tree: k, v [L, K_1, K, H]."""

    address: Address
    k: np.ndarray
    v: np.ndarray


class Reading:
    """Windows that are being read.

    Attributes:
      count: how many. places: by the addresses of their blocks, the window and the block in it.
    """

    def __init__(self, rows: Rows, places: dict[Address, tuple[int, int]], count: int):
        self._rows, self.places, self.count = rows, places, count

    def pair(self, address: Address) -> tuple[jax.Array, jax.Array]:
        """Keys and values of one block, [L, K_1, K, H] each, on the device."""
        window, block = self.places[address]
        (k, at), (v, _) = (_piece_with(window, x.pieces) for x in self._rows)
        if isinstance(k, np.ndarray):  # another thread has brought them to the host meanwhile
            return k[at, block], v[at, block]
        return _of_place(k, v, at, np.int32(block))

    def found(self) -> list[Found]:
        """All blocks, on the host, in arrays of their own: a view would keep alive all that was
        read with it. What was made on the device is let go."""
        k, v = (np.asarray(x) for x in self._rows)
        self._rows = Rows(*(Later(functools.partial(np.asarray, x), [x]) for x in (k, v)))
        return [Found(at, k[where].copy(), v[where].copy()) for at, where in self.places.items()]


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
        """Every block of the windows in which `blocks` [n] lie, and how many windows these are."""
        reading = self.begin(blocks)
        return reading.found(), reading.count

    def begin(self, blocks: np.ndarray) -> Reading:
        """As `read`, and waits for nothing. All windows are read in one batch; what is replaced
        meanwhile is left out."""
        start, stop, _ = self._places(blocks)
        before = [self.addresses(np.arange(*ends)) for ends in self._ends(start, stop)]
        tokens = self._tokens(start, stop)
        rows, _, _ = self._reader.full_windows(tokens.reshape(-1))
        places = {}
        for i, ends in enumerate(self._ends(start, stop)):
            now = self.addresses(np.arange(*ends))
            if now == before[i]:
                places |= {at: (i, block) for block, at in enumerate(now)}
        return Reading(rows, places, len(tokens))

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
        tokens = self._tokens(start, stop).reshape(-1)
        _, states, _ = self._reader.full_windows(tokens, now=False)
        # These blocks alone come to the host: states are the most that is made of a window.
        parts = [
            _states_of(*_piece_with(w, states.pieces), np.int32(at), block)
            for w, at in zip(window, last * block - start[window], strict=True)
        ]
        parts = [np.zeros(shape, np.float32), *jax.device_get(parts)]
        return np.concatenate(parts, axis=1)[:, -want:]

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


def _piece_with(window: int, pieces: Sequence[jax.Array]) -> tuple[jax.Array, np.int32]:
    """The piece that holds a window, which is counted through all of them, and where."""
    for piece in pieces:
        if window < len(piece):
            return piece, np.int32(window)
        window -= len(piece)
    raise IndexError(f"{window} windows more than there are")


@functools.partial(jax.jit, static_argnums=3)
def _states_of(states: jax.Array, window, first, count: int) -> jax.Array:
    """[n, L + 1, window, D] -> [L + 1, count, D], those of the window's tokens from `first` on."""
    return jax.lax.dynamic_slice_in_dim(states[window], first, count, axis=1)


@jax.jit
def _of_place(k: jax.Array, v: jax.Array, window, block) -> tuple[jax.Array, jax.Array]:
    return k[window, block], v[window, block]
