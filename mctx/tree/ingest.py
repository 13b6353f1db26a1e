"""Ingest: the frozen base reads the history once, window by window; GistNet makes its gists.

Windows lie on a grid of `model.window` tokens, which starts anew at every document's borders. A
window of text that is not full yet is read again as it grows, some blocks at a time, behind the
rows it already has; full windows, and the padded last one of a document, are read in batches.
Either way the rows, states and gists of a block are the same function of the tokens of its window
up to its end (design: law 8).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.flops import Count
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows
from mctx.models.wrapped import Wrapped, prefix_rows, read, read_windows
from mctx.sharding import beside, to_host
from mctx.tree import editing
from mctx.tree.documents import Span
from mctx.tree.store import Tree, TreeSpec
from mctx.tree.window import OpenWindow

BATCH = 4  # windows, and groups of siblings, per call of fixed shape
# Windows whose gists are stored at once. Gists of gists are made of what is on the host, and wait
# until the device has read all that it was asked to: seldom enough to cost little.
AT_ONCE = 8 * BATCH
AHEAD = 2  # such stretches that have been begun: the one that is being stored, and the next

STORED_TYPE = jnp.bfloat16  # of gists: what is rounded on the device is half as much to bring


class Later:
    """An array that is on the device, perhaps still in the making, until NumPy asks for it.

    Attributes:
      pieces: what it is joined of, on the device, if anything.
    """

    def __init__(self, made: Callable[[], np.ndarray], pieces: Sequence[jax.Array] = ()):
        self._made, self.pieces = made, pieces

    @classmethod
    def of(cls, pieces: Sequence[jax.Array], now: bool = True) -> Later:
        """Of pieces that are joined along their first axis, and set out for the host `now`, or
        when they are asked for."""
        coming = [to_host(piece) for piece in pieces] if now else None
        return cls(lambda: _end_to_end(coming or map(to_host, pieces)), pieces)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._made(), dtype)


def _end_to_end(pieces):
    there = [np.asarray(piece) for piece in pieces]
    joined = there[0] if len(there) == 1 else np.concatenate(there)
    joined.flags.writeable = False  # so that the tree need not copy it to hold it
    return joined


class Blocks(NamedTuple):
    """What the base made of consecutive blocks: the first block's number, host rows and states.
    Rows and states are None where only gists were wanted.

    Attributes:
      first: index of the first block.
      k, v: [n, L, K_1, K, H] keys (unrotated) and values, in the base's own type.
      states: [L + 1, n·K_1, D], on the device or `Later`.
    """

    first: int
    k: np.ndarray | None
    v: np.ndarray | None
    states: jax.Array | Later | None


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
    """The compiled calls of ingest for one model; knows no tree and keeps no history.

    Attributes:
      operations: counts what the calls so far have asked of the machine (`mctx.flops`).
      where: where what it makes stands (`sharding.beside`).
      apart: whether that is in other memory than the host's.
    """

    def __init__(self, model: Wrapped, params: dict):
        if "gistnet" not in params:
            raise UserError(
                "a history is kept in gists: open the checkpoint with its item gistnet, or with "
                "untrained=True."
            )
        self.model = model
        self.operations = Count()
        self.params = {name: params[name] for name in ("base", "gistnet")}
        self.prefix = jax.jit(functools.partial(prefix_rows, model))(params)  # [L, 1, P, K, H]
        self.where = beside(self.prefix)
        self.apart = next(iter(self.where.device_set)).platform != "cpu"
        self._full = jax.jit(functools.partial(_read_full, model))
        self._grow = jax.jit(functools.partial(_read_more, model), donate_argnums=3)
        self._pool = jax.jit(functools.partial(_ascend, model), static_argnums=1)

    def full_windows(self, tokens: np.ndarray, now: bool = True) -> tuple[Rows, Later, Later]:
        """Whole windows, of which nothing is waited for: rows and gists set out for the host
        `now`; states, the most that reading a window makes, stay until somebody wants them.

        Args:
          tokens: [n·window].

        Returns:
          Rows [n, blocks, L, K_1, K, H] in the base's own type, states [n, L + 1, window, D],
          LOD1 gists [n, blocks, slots, W]: arrays `Later`.
        """
        made = [self._full(self.params, piece) for piece in self._pieces(tokens)]
        rows, states, gists = zip(*made, strict=True)
        k, v = (Later.of(x, now) for x in zip(*rows, strict=True))
        return Rows(k, v), Later.of(states, now=False), Later.of(gists, now)

    def window_gists(self, tokens: np.ndarray) -> Later:
        """As `full_windows`, the LOD1 gists alone: nothing else leaves the device. (A program that
        makes nothing else takes longer, on an H200 by a third: XLA multiplies otherwise.)"""
        return Later.of([self._full(self.params, piece)[2] for piece in self._pieces(tokens)])

    def _pieces(self, tokens):
        """Windows in batches, and what is left one by one; their operations are counted."""
        windows = tokens.reshape(-1, self.model.window)
        while len(windows):
            size = BATCH if len(windows) >= BATCH else 1
            piece, windows = windows[:size], windows[size:]
            self.operations.add(("full", size), 1, _read_full, (self.model,), self.params, piece)
            yield piece

    def empty_window(self) -> Rows:
        """On the device, [L, window, K, H]: for the rows of a window that grows."""
        c = self.model.base
        shape = (c.n_layers, self.model.window, c.n_kv_heads, c.head_dim)
        return Rows(*(jnp.zeros(shape, x.dtype, device=self.where) for x in self.prefix))

    def grow(self, tokens: np.ndarray | jax.Array, before: Rows, length: int):
        """Whole blocks behind the rows of their window so far.

        Args:
          tokens: [n·K_1], no more than the window has room for; compiled once for each n.
          before: [L, window, K, H] on the device, the first `length` rows valid; used up.

        Returns:
          The window's rows, and what was added, all on the device: rows [n, L, K_1, K, H] and gists
          [n, slots, W], on their way to the host, and states [L + 1, n·K_1, D].
        """
        tokens = jax.device_put(tokens, self.where)  # one program for known ones and others
        args = self.params, self.prefix, tokens, before, np.int32(length)
        self.operations.add(("grow", len(tokens)), 1, _read_more, (self.model,), *args)
        window, (rows, states, gists) = self._grow(*args)
        for each in (gists, *rows):
            each.copy_to_host_async()
        return window, rows, states, gists

    def pool(self, level: int, children: np.ndarray) -> np.ndarray:
        """Gists of `level` from [n·K_l, slots, W] complete families: -> [n, slots, W]."""
        gist = self.model.gist
        families = children.reshape(-1, gist.fanouts[level - 1], *children.shape[1:])
        made = [np.zeros((0, gist.entries[level - 1], gist.width), STORED_TYPE)]
        for at in range(0, len(families), AT_ONCE):  # each waits once
            some = families[at : at + AT_ONCE]
            pieces = [some[i : i + BATCH] for i in range(0, len(some), BATCH)]
            short = BATCH - len(pieces[-1])
            pieces[-1] = np.pad(pieces[-1], ((0, short), *[(0, 0)] * (families.ndim - 1)))
            made += jax.device_get([self._pool(self.params, level, piece) for piece in pieces])
        return np.concatenate(made)[: len(families)]


def _read_full(model, params, windows):
    rows, states = read_windows(model, params, windows)
    gists = model.gistnet.apply({"params": params["gistnet"]}, states, rows, method="blocks")
    n, block = len(windows), model.gist.block
    rows = Rows(*(_by_block(x, block) for x in rows))
    rows = Rows(*(x.reshape(n, -1, *x.shape[1:]) for x in rows))  # here, where copies are fast
    return rows, jnp.swapaxes(states, 0, 1).astype(jnp.float32), gists.astype(STORED_TYPE)


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
    made = {"params": params["gistnet"]}, out.states, out.rows
    gists = model.gistnet.apply(*made, method="blocks")
    window = Rows(
        *(
            jax.lax.dynamic_update_slice_in_dim(old, new[:, 0], length, axis=1)
            for old, new in zip(before, out.rows, strict=True)
        )
    )
    own = Rows(*(_by_block(x, model.gist.block) for x in out.rows))
    return window, (own, out.states[:, 0].astype(jnp.float32), gists[0].astype(STORED_TYPE))


def _by_block(x, block):
    """[L, n, T, K, H] -> [n·blocks, L, K_1, K, H]."""
    split = x.reshape(len(x), -1, block, *x.shape[3:])
    return jnp.swapaxes(split, 0, 1)


def _joined_blocks(x):
    """Of windows [n, blocks, …], on the host: [n·blocks, …]."""
    x = np.asarray(x)
    return x.reshape(-1, *x.shape[2:])


def _joined(states):
    """Of windows [n, L + 1, window, D] behind each other: [L + 1, n·window, D]."""
    by_layer = np.asarray(states).swapaxes(0, 1)
    return by_layer.reshape(len(by_layer), -1, by_layer.shape[-1])


def _ascend(model, params, level, families):
    n, k = families.shape[:2]
    flat = families.reshape(1, n * k, *families.shape[2:])
    out = model.gistnet.apply({"params": params["gistnet"]}, level, flat, method="ascend")
    return out[0].astype(STORED_TYPE)


class Ingest:
    """Feeds text and documents into a tree; the caller commits.

    What the base made of every complete block of text is handed out. Tokens short of a block wait
    in memory (`waiting`); the tree holds whole blocks only, so a tree is always at a block's
    border. A window that is not whole grows by `stride` blocks at once where so many have come.
    `pad`: the token that fills the last block of a document, and of text that a document follows.
    """

    def __init__(self, reader: Reader, tree: Tree, stride: int = 1, pad: int = 0):
        self.reader, self.tree, self.pad = reader, tree.own, pad
        self._whole = tree  # with what is mounted before our own
        self.waiting = np.zeros(0, np.int32)
        self._open = OpenWindow(reader, stride * reader.model.gist.block)
        self._resume()

    # -- text ------------------------------------------------------------------------------

    def feed(self, tokens: np.ndarray, rows: int | None = None) -> Iterator[Blocks]:
        """Adds tokens; every block that becomes complete is read, gisted and staged.

        The work is done as the result is iterated over, a few windows at a time, so that a long
        text needs no more memory than a short one.

        Args:
          rows: of how many of the last tokens rows and states are wanted, None for all. They are
            much to bring to the host, so who keeps some should ask for no more; a window that is
            not whole has them in any case.
        """
        self.add(tokens)
        block, begun = self.reader.model.gist.block, deque()
        while len(self.waiting) >= block:
            self._begin(begun, rows)
            made = self._take_windows(*begun.popleft()) if begun else self._take_blocks()
            yield made()

    def add(self, tokens: np.ndarray) -> None:
        """Adds tokens that wait until they are fed."""
        self.waiting = np.concatenate([self.waiting, np.asarray(tokens, np.int32)])

    def ask(self, tokens: np.ndarray | jax.Array) -> jax.Array | None:
        """Begins to read what will probably wait when the next is fed; see `OpenWindow.ask`."""
        return self._window().ask(tokens)

    def _begin(self, begun, rows):
        """Asks for the windows with which the waiting text begins, if it does so at a window's
        border, and for those after them: `begun` are their tokens and `Reader.full_windows`."""
        size, at = self.reader.model.window, sum(len(tokens) for tokens, _ in begun)
        while len(begun) < AHEAD and not self._open.length:
            left = len(self.waiting) - at
            apart = 0 if rows is None else max(0, left - rows) // size  # without rows
            count = min(left // size, BATCH) if not apart else min(apart, AT_ONCE)
            if not count:
                return
            count -= count % BATCH if count > BATCH else 0
            tokens = self.waiting[at : at + count * size]
            if apart:
                begun.append((tokens, (None, None, self.reader.window_gists(tokens))))
            else:
                begun.append((tokens, self.reader.full_windows(tokens)))
            at += len(tokens)

    def _take_windows(self, tokens, made):
        rows, states, gists = made
        first = self._append(tokens, _joined_blocks(gists))
        self.waiting = self.waiting[len(tokens) :]
        if rows is None:
            return lambda: Blocks(first, None, None, None)
        states = Later(functools.partial(_joined, states))
        return lambda: Blocks(first, *map(_joined_blocks, rows), states)

    def _take_blocks(self):
        grown = self._window().read(self.waiting)
        count = len(grown.tokens)
        # Should this fail, they still wait, and will be read again in the same place.
        first = self._append(self.waiting[:count], np.asarray(grown.gists))
        self._open.grow(count)
        self.waiting = self.waiting[count:]
        return lambda: Blocks(first, *map(np.asarray, grown.rows), grown.states)

    def _append(self, tokens, gists):
        """Blocks and all gists that they complete; returns the first block's index."""
        draft, first = editing.Draft(self.tree), self.tree.blocks
        draft.write_blocks(first, tokens, gists, first + len(gists))
        editing.ascend(self.reader, draft, [(first, first + len(gists))])
        draft.stage()
        return self._whole.blocks - self.tree.blocks + first

    def state(self) -> dict[str, np.ndarray]:
        """What is in memory alone: tokens that wait, and the open window's rows, on the host."""
        return {"waiting": self.waiting} | self._window().state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on exactly where `state` was asked for; the tree must be as it was then."""
        self.waiting = state["waiting"]
        self._open.restore(state)

    def _window(self) -> OpenWindow:
        """The window in which the text ends, with all its rows."""
        if self._open.lost:
            self._resume()
        return self._open

    def _resume(self):
        """Text that ends inside a window: the window's rows so far are read again."""
        self._open.begin()
        size, block = self.reader.model.window, self.reader.model.gist.block
        stop, began = self.tree.blocks * block, int(self.tree.borders[-1])
        tokens = self.tree.tokens(began + (stop - began) // size * size, stop)
        while len(tokens):
            count = len(self._open.read(tokens).tokens)
            self._open.grow(count)
            tokens = tokens[count:]

    # -- documents -------------------------------------------------------------------------

    def add_document(self, name: str, tokens: np.ndarray) -> Span:
        """Adds a document behind the history; text that waits is padded to a block first."""
        editing.check_new(self.tree.documents, name, tokens)
        self._end_text()
        return self._edit(editing.add, name, tokens)

    def replace_document(self, name: str, tokens: np.ndarray) -> Span:
        """Gives a document another text, in its own place or, where it outgrows that, at the end.

        The windows that changed are read, and the gists above them made anew, and no others.
        """
        if not editing.fits(self.tree.documents, name, tokens):
            self._end_text()
        return self._edit(editing.replace, name, tokens)

    def delete_document(self, name: str) -> None:
        """Deletes a document; its place stays, dead."""
        draft = editing.Draft(self.tree)
        editing.ascend(self.reader, draft, editing.delete(draft, name))
        draft.stage()

    def _end_text(self):
        if len(self.waiting):
            short = -len(self.waiting) % self.reader.model.gist.block
            for _ in self.feed(np.full(short, self.pad, np.int32)):
                pass

    def _edit(self, edit, name, tokens):
        draft = editing.Draft(self.tree)
        runs = edit(self.reader, draft, name, np.asarray(tokens, np.int32), self.pad)
        editing.ascend(self.reader, draft, runs)
        draft.stage()
        if self.tree.borders[-1] == self.tree.length:
            self._open.close()
        return self.tree.documents[name]
