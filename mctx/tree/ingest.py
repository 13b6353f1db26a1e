"""Ingest: the frozen base reads the history once, window by window; GistNet makes its gists.

Windows lie on a fixed grid of `model.window` tokens. A window that is not full yet is read again
as it grows, some blocks at a time, behind the rows it already has; full windows are read in
batches.
Either way the rows, states and gists of a block are the same function of the tokens of its window
up to its end (design: law 8).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
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
        self.prefix = jax.jit(functools.partial(prefix_rows, model))(params)  # [L, 1, P, K, H]
        self._full = jax.jit(functools.partial(_read_full, model))
        self._grow = jax.jit(functools.partial(_read_more, model), donate_argnums=3)
        self._pool = jax.jit(functools.partial(_ascend, model), static_argnums=1)

    def full_windows(self, tokens: np.ndarray) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Whole windows: [n·window] -> rows [n, L, window, …], states, LOD1 gists, on the host."""
        windows = tokens.reshape(-1, self.model.window)
        outs = []
        while len(windows):  # in batches, and what is left one by one
            size = BATCH if len(windows) >= BATCH else 1
            piece, windows = windows[:size], windows[size:]
            outs.append(jax.device_get(self._full(self.params, piece)))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *outs)

    def empty_window(self) -> Rows:
        """On the device, [L, window, K, H]: for the rows of a window that grows."""
        c = self.model.base
        shape = (c.n_layers, self.model.window, c.n_kv_heads, c.head_dim)
        return Rows(jnp.zeros(shape), jnp.zeros(shape))

    def grow(self, tokens: np.ndarray, before: Rows, length: int):
        """Whole blocks behind the rows of their window so far.

        Args:
          tokens: [n·K_1], no more than the window has room for; compiled once for each n.
          before: [L, window, K, H] on the device, the first `length` rows valid; used up.

        Returns:
          The window's rows, on the device, and on the host what was added: rows
          [L, n·K_1, K, H], states [L + 1, n·K_1, D] and gists [n, slots, W].
        """
        window, made = self._grow(self.params, self.prefix, tokens, before, np.int32(length))
        return window, *jax.device_get(made)

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


def _read_more(model, params, prefix, tokens, before, length):
    p, size = prefix.k.shape[2], before.k.shape[1]
    pairs = zip(prefix, before, strict=True)
    context = Context(
        Rows(*(jnp.concatenate([a, b[:, None]], axis=2) for a, b in pairs)),
        jnp.arange(p + size)[None],
        jnp.where(jnp.arange(p + size) < p + length, 0.0, NEGATIVE)[None],
    )
    positions = p + length + jnp.arange(tokens.shape[0])
    out = read(model, params, tokens[None], positions[None], context, collect=True)
    gists = model.gistnet.apply({"params": params["gistnet"]}, out.states, method="blocks")
    rows = Rows(*(x[:, 0].astype(jnp.float32) for x in out.rows))
    window = Rows(
        *(
            jax.lax.dynamic_update_slice_in_dim(old, new, length, axis=1)
            for old, new in zip(before, rows, strict=True)
        )
    )
    return window, (rows, out.states[:, 0].astype(jnp.float32), gists[0].astype(jnp.float32))


def _ascend(model, params, level, families):
    n, k = families.shape[:2]
    flat = families.reshape(1, n * k, *families.shape[2:])
    out = model.gistnet.apply({"params": params["gistnet"]}, level, flat, method="ascend")
    return out[0].astype(jnp.float32)


class Ingest:
    """Feeds tokens into a tree and hands out what the base made of every complete block.

    Tokens short of a block wait in memory (`waiting`); the tree holds whole blocks only, so a tree
    is always at a block's border. A window grows by `stride` blocks at once where so many have
    come, else block by block.
    """

    def __init__(self, reader: Reader, tree: Tree, stride: int = 1):
        self.reader, self.tree = reader, tree
        self.waiting = np.zeros(0, np.int32)
        self._stride = stride * reader.model.gist.block
        self._open = reader.empty_window()
        self._open_length = 0
        self._resume()

    def feed(self, tokens: np.ndarray) -> Iterator[Blocks]:
        """Adds tokens; every block that becomes complete is read, gisted and appended.

        The work is done as the result is iterated over, a few windows at a time, so that a long
        text needs no more memory than a short one.
        """
        self.waiting = np.concatenate([self.waiting, np.asarray(tokens, np.int32)])
        block, size = self.reader.model.gist.block, self.reader.model.window
        while len(self.waiting) >= block:
            whole = min(len(self.waiting) // size, BATCH)
            at_border = self._open_length == 0 and whole
            stop = whole * size if at_border else len(self._next(self.waiting))
            take = self._take_windows if at_border else self._take_blocks
            made = take(self.waiting[:stop])
            self.waiting = self.waiting[stop:]
            self._complete_levels()
            yield made

    def _take_windows(self, tokens):
        rows, states, gists = self.reader.full_windows(tokens)
        first = self.tree.blocks
        self.tree.append(tokens, {1: gists.reshape(-1, *gists.shape[2:])})
        joined = states.swapaxes(0, 1).reshape(states.shape[1], -1, states.shape[-1])
        return Blocks(first, *(self._by_block(x) for x in rows), joined)

    def _by_block(self, x):  # [n, L, window, K, H] -> [n·blocks, L, K_1, K, H]
        n, layers, size = x.shape[:3]  # a window, or what it grew by
        block = self.reader.model.gist.block
        split = x.reshape(n, layers, size // block, block, *x.shape[3:])
        return split.swapaxes(1, 2).reshape(-1, layers, block, *x.shape[3:])

    def _next(self, tokens):
        """The tokens by which the open window grows next."""
        room = min(len(tokens), self.reader.model.window - self._open_length)
        return tokens[: self._stride if self._stride <= room else self.reader.model.gist.block]

    def _take_blocks(self, tokens):
        first = self.tree.blocks
        rows, states, gists = self._read_open(tokens)
        self.tree.append(tokens, {1: gists})
        return Blocks(first, *(self._by_block(x[None]) for x in rows), states)

    def _read_open(self, tokens):
        """Reads more of the open window and keeps its rows for what follows."""
        self._open, *made = self.reader.grow(tokens, self._open, self._open_length)
        self._open_length = (self._open_length + len(tokens)) % self.reader.model.window
        return made

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
        while len(tokens):
            more = self._next(tokens)
            self._read_open(more)
            tokens = tokens[len(more) :]
