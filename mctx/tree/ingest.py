"""Ingest: the frozen base reads the history once, window by window; GistNet makes its gists.

Windows lie on a fixed grid of `model.window` tokens. A window that is not full yet is read again
as it grows by whole blocks, behind the rows it already has; full windows are read in batches.
Either way the rows, states and gists of a block are the same function of the tokens of its window
up to its end (design: law 8).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows
from mctx.models.wrapped import Wrapped, prefix_rows, read, read_windows
from mctx.tree.store import Tree, TreeSpec

BATCH = 4  # windows, and groups of siblings, per call of fixed shape


class Blocks(NamedTuple):
    """What the base made of consecutive blocks: the first block's number, host rows and states.

    Attributes:
      first: index of the first block.
      k, v: [n, L, K_1, K, H] keys (unrotated) and values.
      states: [L + 1, n·K_1, D].
    """

    first: int
    k: np.ndarray
    v: np.ndarray
    states: np.ndarray


def tree_spec(model: Wrapped, fingerprint: str) -> TreeSpec:
    """The shape of a tree for this model's gists; `fingerprint` names the parameters."""
    return TreeSpec(
        fanouts=model.gist.fanouts,
        slots=model.gist.slots,
        gist_width=model.gist.width,
        fingerprint=fingerprint,
        vocab_size=model.base.vocab_size,
    )


class Reader:
    """The compiled calls of ingest for one model; knows no tree and keeps no history."""

    def __init__(self, model: Wrapped, params: dict):
        self.model = model
        self.params = {name: params[name] for name in ("base", "gistnet")}
        self._full = jax.jit(functools.partial(_read_full, model))
        self._grow = jax.jit(functools.partial(_read_block, model))
        self._pool = jax.jit(functools.partial(_ascend, model), static_argnums=1)

    def full_windows(self, tokens: np.ndarray) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Whole windows: [n·window] -> rows [n, L, window, …], states, LOD1 gists, on the host."""
        size = self.model.window
        windows = tokens.reshape(-1, size)
        outs = []
        for i in range(0, len(windows), BATCH):
            piece = windows[i : i + BATCH]
            padded = np.pad(piece, ((0, BATCH - len(piece)), (0, 0)))
            out = jax.device_get(self._full(self.params, padded))
            outs.append(jax.tree.map(lambda x, n=len(piece): x[:n], out))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *outs)

    def next_block(self, tokens: np.ndarray, before: Rows, length: int):
        """One block behind the rows of its window so far.

        Args:
          tokens: [K_1].
          before: [L, window, K, H], the first `length` rows valid.

        Returns:
          Rows [L, K_1, K, H], states [L + 1, K_1, D] and the gist [slots, W], on the host.
        """
        return jax.device_get(self._grow(self.params, tokens, before, np.int32(length)))

    def pool(self, level: int, children: np.ndarray) -> np.ndarray:
        """Gists of `level` from [n·K_l, slots, W] complete families: -> [n, slots, W]."""
        k = self.model.gist.fanouts[level - 1]
        families = children.reshape(-1, k, *children.shape[1:])
        outs = []
        for i in range(0, len(families), BATCH):
            piece = families[i : i + BATCH]
            padded = np.pad(piece, ((0, BATCH - len(piece)), (0, 0), (0, 0), (0, 0)))
            outs.append(np.asarray(self._pool(self.params, level, padded))[: len(piece)])
        return np.concatenate(outs) if outs else children[:0]


def _read_full(model, params, windows):
    rows, states = read_windows(model, params, windows)
    gists = model.gistnet.apply({"params": params["gistnet"]}, states, method="blocks")
    by_window = Rows(*(jnp.swapaxes(x, 0, 1).astype(jnp.float32) for x in rows))
    return by_window, jnp.swapaxes(states, 0, 1).astype(jnp.float32), gists.astype(jnp.float32)


def _read_block(model, params, tokens, before, length):
    prefix = prefix_rows(model, params)
    p, size = prefix.k.shape[2], before.k.shape[1]
    context = Context(
        Rows(*(jnp.concatenate([a, b[:, None]], axis=2) for a, b in zip(prefix, before, strict=True))),
        jnp.arange(p + size)[None],
        jnp.where(jnp.arange(p + size) < p + length, 0.0, NEGATIVE)[None],
    )
    positions = p + length + jnp.arange(tokens.shape[0])
    out = read(model, params, tokens[None], positions[None], context, collect=True)
    gist = model.gistnet.apply({"params": params["gistnet"]}, out.states, method="blocks")
    rows = Rows(*(x[:, 0].astype(jnp.float32) for x in out.rows))
    return rows, out.states[:, 0].astype(jnp.float32), gist[0, 0].astype(jnp.float32)


def _ascend(model, params, level, families):
    n, k = families.shape[:2]
    flat = families.reshape(1, n * k, *families.shape[2:])
    out = model.gistnet.apply({"params": params["gistnet"]}, level, flat, method="ascend")
    return out[0].astype(jnp.float32)


class Ingest:
    """Feeds tokens into a tree and hands out what the base made of every complete block.

    Tokens short of a block wait in memory (`waiting`); the tree holds whole blocks only, so a tree
    is always at a block's border.
    """

    def __init__(self, reader: Reader, tree: Tree):
        self.reader, self.tree = reader, tree
        self.waiting = np.zeros(0, np.int32)
        model = reader.model
        c, size = model.base, model.window
        shape = (c.n_layers, size, c.n_kv_heads, c.head_dim)
        self._open = Rows(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        self._open_length = 0
        self._resume()

    def feed(self, tokens: np.ndarray) -> list[Blocks]:
        """Adds tokens; every block that becomes complete is read, gisted and appended."""
        tokens = np.concatenate([self.waiting, np.asarray(tokens, np.int32)])
        block, size = self.reader.model.gist.block, self.reader.model.window
        made, at = [], 0
        while len(tokens) - at >= block:
            whole = (len(tokens) - at) // size
            if self._open_length == 0 and whole:
                made.append(self._take_windows(tokens[at : at + whole * size]))
                at += whole * size
            else:
                made.append(self._take_block(tokens[at : at + block]))
                at += block
        self.waiting = tokens[at:]
        if made:
            self._complete_levels()
        return made

    def _take_windows(self, tokens):
        rows, states, gists = self.reader.full_windows(tokens)
        first = self.tree.blocks
        self.tree.append(tokens, {1: gists.reshape(-1, *gists.shape[2:])})
        joined = states.swapaxes(0, 1).reshape(states.shape[1], -1, states.shape[-1])
        return Blocks(first, *(self._by_block(x) for x in rows), joined)

    def _by_block(self, x):  # [n, L, window, K, H] -> [n·blocks, L, K_1, K, H]
        n, layers, size = x.shape[:3]
        block = self.reader.model.gist.block
        split = x.reshape(n, layers, size // block, block, *x.shape[3:])
        return split.swapaxes(1, 2).reshape(-1, layers, block, *x.shape[3:])

    def _take_block(self, tokens):
        first = self.tree.blocks
        rows, states, gist = self._read_open(tokens)
        self.tree.append(tokens, {1: gist[None]})
        return Blocks(first, rows.k[None], rows.v[None], states)

    def _read_open(self, tokens):
        """Reads one more block of the open window and keeps its rows for the next."""
        rows, states, gist = self.reader.next_block(tokens, self._open, self._open_length)
        stop = self._open_length + len(tokens)
        for kept, new in zip(self._open, rows, strict=True):
            kept[:, self._open_length : stop] = new
        self._open_length = stop % self.reader.model.window
        return rows, states, gist

    def _complete_levels(self):
        tree, fanouts = self.tree, self.tree.spec.fanouts
        for level in range(2, len(fanouts) + 1):
            k, have = fanouts[level - 1], tree.count(level)
            whole = tree.count(level - 1) // k
            if whole > have:
                children = tree.gather(level - 1, np.arange(have * k, whole * k))
                empty = np.zeros(0, np.int32)
                tree.append(empty, {level: self.reader.pool(level, children)})

    def _resume(self):
        """A tree that ends inside a window: its rows so far are read again."""
        size, block = self.reader.model.window, self.reader.model.gist.block
        length = self.tree.blocks * block
        start = length // size * size
        tokens = self.tree.tokens(start, length)
        for at in range(0, len(tokens), block):
            self._read_open(tokens[at : at + block])
