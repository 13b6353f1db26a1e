"""A reader in plain NumPy, for what does not depend on a model: it obeys law 8 and nothing else.

The gist of a block is a number made of the tokens of its window up to its end; of a node above,
of its children in their order.
"""

import dataclasses

import numpy as np

from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped
from tests import tiny

MODEL: Wrapped = dataclasses.replace(
    tiny.MODEL, gist=dataclasses.replace(tiny.GIST, fanouts=(4, 4, 4, 4), trained=4)
)
BLOCK, WINDOW = 4, 16


class PlainReader:
    """As `mctx.tree.ingest.Reader`. seed: another one makes other gists.

    windows: how many were read, those that grew included.
    """

    def __init__(self, model: Wrapped = MODEL, seed: int = 0):
        self.model, self.windows = model, 0
        self._weights = np.random.default_rng(seed).normal(size=(64, model.gist.width))

    def full_windows(self, tokens):
        windows = np.asarray(tokens).reshape(-1, self.model.window)
        self.windows += len(windows)
        base, n = self.model.base, len(windows)
        block = self.model.gist.block
        shape = n, self.model.window // block, base.n_layers, block, base.n_kv_heads, base.head_dim
        rows = np.zeros(shape)
        states = np.zeros((n, base.n_layers + 1, self.model.window, base.d_model))
        return Rows(rows, rows), states, self._gists(windows)

    def window_gists(self, tokens):
        return self.full_windows(tokens)[2]

    def empty_window(self) -> Rows:
        base = self.model.base
        shape = (base.n_layers, self.model.window, base.n_kv_heads, base.head_dim)
        return Rows(np.zeros(shape), np.zeros(shape))

    def grow(self, tokens, before: Rows, length: int):
        """The first key number remembers the tokens."""
        self.windows += 1
        k = before.k.copy()
        stop = length + len(tokens)
        k[0, length:stop, 0, 0] = tokens
        gists = self._gists(k[None, 0, :stop, 0, 0].astype(int))[0]
        blocks = len(k), -1, self.model.gist.block, *k.shape[2:]
        rows = Rows(*(x[:, length:stop].reshape(blocks).swapaxes(0, 1) for x in (k, before.v)))
        states = np.zeros((k.shape[0] + 1, len(tokens), self.model.base.d_model))
        return Rows(k, before.v), rows, states, gists[length // self.model.gist.block :]

    def pool(self, level: int, children):
        k = self.model.gist.fanouts[level - 1]
        families = children.reshape(-1, k, *children.shape[1:])
        order = np.arange(1, k + 1)[:, None, None]
        return np.tanh((families * order).sum(axis=1) + level).astype(np.float32)

    def _gists(self, windows):  # [n, t] -> [n, t / K_1, slots, width]
        place = np.arange(1, windows.shape[1] + 1) ** 2
        sums = np.cumsum((windows + 1) * place, axis=1)
        sums = sums[:, self.model.gist.block - 1 :: self.model.gist.block]
        found = self._weights[sums % 64] * (1 + sums[..., None] % 7)
        return np.repeat(found[:, :, None], self.model.gist.entries[0], axis=2).astype(np.float32)
