"""Gists on the device: those of the nodes that the lens looked at last, so that a look brings only
what it has not seen (law 7)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models.lensnet import seen
from mctx.runtime.buffer import EMPTY, within
from mctx.tree.store import Tree

AT_ONCE = 32  # gists written by one call of fixed shape
LEVEL_SHIFT = 58  # of a node's key: its level, above its index
INDEX_MASK = 2**LEVEL_SHIFT - 1


class Shelf:
    """Gists by node, those that were asked for longest ago out.

    They are kept with the addresses of their rows in the tree: what is replaced has new ones, so
    nothing here can go stale, and all of it can be dropped at any moment.

    Args:
      nodes: the most that are asked for at once; room is for two times as many.

    Attributes:
      table: [rows, W], gists as the lens sees them; the first row is zeros.
      clock: how often it was asked; until it is again, rows stay where they are.
    """

    def __init__(self, tree: Tree, nodes: int):
        self._tree, self._rows, self.clock = tree, 2 * nodes + 1, 0
        self._begin()

    def _begin(self):
        """Nothing stands here."""
        rows = self._rows
        self.table: jax.Array = jnp.zeros((rows, self._tree.spec.gist_width))
        self._keys = np.full(rows, EMPTY, np.int64)
        self._where = np.full((rows, 3), EMPTY, np.int64)
        self._used = np.zeros(rows, np.int64)
        self._used[0] = np.iinfo(np.int64).max

    def places(self, level: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Rows of `table` where the gists of nodes stand, any shape; what is lacking is written.

        An LOD0 node is described by its LOD1 twin, and what the tree does not hold (a parent that
        is not complete) by zeros, which no edit will use.

        Raises:
          StoreError: a gist cannot be read; nothing is changed then.
        """
        twin = np.maximum(level, 1).astype(np.int64)
        counts = np.array([0, *(self._tree.count(one) for one in self._levels())])
        there = (index >= 0) & (index < counts[twin])
        keys, which = np.unique((twin << LEVEL_SHIFT | index)[there], return_inverse=True)
        found = np.zeros(level.shape, np.int32)
        found[there] = self._stand(keys)[which]
        return found

    def _levels(self):
        return range(1, self._tree.spec.levels + 1)

    def _stand(self, keys):
        """Rows [n] of distinct nodes, which are there afterwards."""
        if self.table.is_deleted():  # a write that failed has used it up
            self._begin()
        level, index = keys >> LEVEL_SHIFT, keys & INDEX_MASK
        where = self._by_level(level, index, self._tree.addresses, (3,), np.int64)
        known, rows = within(keys, self._keys)
        fresh = known & np.all(self._where[rows] == where, axis=1)
        lacking = np.flatnonzero(~fresh)
        if len(lacking):
            width = self.table.shape[1:]
            gists = self._by_level(level[lacking], index[lacking], self._gists, width, np.float32)
        self.clock += 1
        self._used[rows[known]] = self.clock
        if len(lacking):
            new = np.flatnonzero(~known)
            rows[new] = np.argpartition(self._used, len(new))[: len(new)]
            self._keys[rows[lacking]] = EMPTY  # should it fail, they are written anew
            self._put(rows[lacking], gists)
            self._used[rows] = self.clock
            self._keys[rows], self._where[rows] = keys, where
        return rows

    def _gists(self, level, index):
        return seen(self._tree.gather(level, index))

    def _by_level(self, level, index, of, shape, dtype):
        out = np.empty((len(level), *shape), dtype)
        for one in np.flatnonzero(np.bincount(level, minlength=1)).tolist():
            here = level == one
            out[here] = of(one, index[here])
        return out

    def _put(self, rows, gists):
        for at in range(0, len(rows), AT_ONCE):
            to, some = rows[at : at + AT_ONCE], gists[at : at + AT_ONCE]
            short = AT_ONCE - len(to)
            to = np.pad(to, (0, short), constant_values=len(self.table)).astype(np.int32)
            self.table = _written(self.table, to, np.pad(some, ((0, short), (0, 0))))


@functools.partial(jax.jit, donate_argnums=0)
def _written(table: jax.Array, to: jax.Array, gists: jax.Array) -> jax.Array:
    return table.at[to].set(gists, mode="drop")
