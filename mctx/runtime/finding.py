"""What the lens's finders see in a session: keys kept of every block, looked over at a refocus.

A few hundred bytes are held of every token (`Finding.nbytes`), and a look costs as much as the
attention of those heads over the whole history (design: LensNet). Keys come with ingest, where it
hands out what it has read; of other blocks (a tree that was there before, a document) they are
remade exactly from the cache, or by reading their windows again (law 8): the first look at a long
history that was opened reads all of it once, and is waited for. Keys are kept with the addresses
of their blocks' tokens: a document that is replaced has new ones, so nothing here can go stale.
Sessions that share a cache share them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mctx.flops import Count
from mctx.models import finder
from mctx.models.finder import nothing_found
from mctx.models.gistnet import GistConfig
from mctx.models.wrapped import Wrapped
from mctx.runtime.cache import BlockCache
from mctx.runtime.focusing import Gather
from mctx.tree.ingest import BATCH, Blocks
from mctx.tree.store import Tree

PIECE = 256  # blocks that one call looks over, so that no length of history compiles anything


class _Piece:
    """Keys of consecutive blocks, and where the tokens lie that they are of; -1: not known."""

    def __init__(self, shape: tuple[int, ...], dtype):
        self.keys: np.ndarray | jax.Array = np.zeros(shape, dtype)  # [P, blocks, T, h]
        self.where = np.full((shape[1], 3), -1, np.int64)

    def put(self, at: np.ndarray, keys: np.ndarray, where: np.ndarray) -> None:
        """Keys [m, P, T, h] of the blocks at [m]."""
        if not isinstance(self.keys, np.ndarray):
            self.keys = np.array(self.keys)
        self.keys[:, at], self.where[at] = keys.swapaxes(0, 1), where

    def settle(self) -> None:
        """Moves to the device: this piece is full, and seldom changes from now on."""
        if isinstance(self.keys, np.ndarray):
            self.keys = jax.device_put(self.keys)


class _Look:
    """What was found, or will have been when it is waited for: features of nodes of mixed levels.

    Args:
      of: query, number of blocks, dead runs. found: features of the blocks, in pieces [n, F].
    """

    def __init__(self, gist: GistConfig, of: tuple, found: Sequence):
        self._gist, self._of, self._found = gist, of, found
        self._levels: list[np.ndarray] | None = None

    def same(self, query: jax.Array, blocks: int, dead: np.ndarray) -> bool:
        """Whether it is a look at just these, and has not failed."""
        before = self._of and (self._of[0] is query, self._of[1] == blocks, self._of[2] is dead)
        return bool(before) and all(before)

    def __call__(self, level: np.ndarray, index: np.ndarray) -> np.ndarray:
        """[..., F]; what is not complete has found nothing."""
        levels = self._levels = self._levels or self._fetched()
        out = np.zeros((*level.shape, levels[0].shape[1]), np.float32)
        for one, table in enumerate(levels):
            here = (level == one) & (index >= 0) & (index < len(table))
            out[here] = table[index[here]]
        return out

    def _fetched(self):
        """Of every level, the best beneath each complete node: [nodes, F]."""
        of, self._of = self._of, ()  # should it fail, it is asked anew
        found, gist = np.concatenate(jax.device_get(self._found))[: of[1]], self._gist
        self._of, self._found = of, ()
        spans = [1] + [gist.span(level) // gist.block for level in range(1, gist.levels + 1)]
        levels = []
        for span in spans:
            count = len(found) // span
            beneath = found[: count * span].reshape(count, span, found.shape[1])
            levels.append(beneath.max(axis=1))
        return levels


class Finding:
    """Keys of the blocks of one tree, in pieces on the device; the last is filled in the host.

    Args:
      params: those of the base, among others.
      recent: blocks at the end that are always shown, which are not looked over.
      piece: blocks of one.
    """

    def __init__(
        self,
        model: Wrapped,
        params: dict,
        tree: Tree,
        cache: BlockCache,
        recent: int,
        piece: int,
    ):
        self._model, self._base, self._tree, self._cache = model, params["base"], tree, cache
        self._recent, self._size, self._block = recent, piece, model.gist.block
        self._pieces: list[_Piece] = cache.pieces.setdefault((model.lens.finders, piece), [])
        self._last: _Look | None = None
        self.operations = Count()

    @property
    def nbytes(self) -> int:
        """Of all keys that are held."""
        return sum(piece.keys.nbytes for piece in self._pieces)

    def put(self, blocks: Blocks) -> None:
        """Keeps the keys of blocks that ingest has just read."""
        self._keep(np.arange(blocks.first, blocks.first + len(blocks.k)), blocks.k)

    def look(self, query: jax.Array, blocks: int, dead: np.ndarray) -> Gather:
        """What the last tokens find in the first `blocks` blocks, by node, zeros for nothing.

        The device is asked here, and waited for by whoever calls for nodes. The same look again
        (the same arrays, as a refocus has them in all its rounds) is free. Blocks that are put
        meanwhile are none of those that are looked over.

        Args:
          query: states of the last tokens, [L + 1, Q, D]. dead: runs of dead blocks [r, 2].
        """
        if not (self._last and self._last.same(query, blocks, dead)):
            found = self._by_block(query, blocks, dead)
            self._last = _Look(self._model.gist, (query, blocks, dead), found)
        return self._last

    # -- keys ------------------------------------------------------------------------------

    def _keep(self, blocks, keys):
        """Keys [m, L, T, K, h] of blocks [m]."""
        kept = finder.kept(self._model.lens, np.moveaxis(keys, 1, 0))  # [m, P, T, h]
        self._reach(blocks[-1] + 1)
        where = self._where(blocks)
        for i in np.unique(blocks // self._size).tolist():
            here = blocks // self._size == i
            self._pieces[i].put(blocks[here] % self._size, kept[here], where[here])

    def _reach(self, blocks):
        """Pieces for so many blocks."""
        c = self._model
        shape = len(c.lens.finders), self._size, self._block, c.base.head_dim
        while len(self._pieces) * self._size < blocks:
            self._pieces.append(_Piece(shape, jnp.dtype(c.dtype)))

    def _where(self, blocks):
        return self._tree.addresses(0, blocks.astype(np.int64) * self._block)

    def _follow(self, i, live):
        """A piece has keys of its live blocks [piece] as the tree has them now."""
        blocks = i * self._size + np.flatnonzero(live)
        moved = np.any(self._where(blocks) != self._pieces[i].where[live], axis=1)
        missing = blocks[moved]
        batch = missing // (BATCH * self._model.window // self._block)
        for one in np.unique(batch).tolist():
            part = missing[batch == one]
            self._keep(part, self._cache.keys(part))

    # -- a look ----------------------------------------------------------------------------

    def _by_block(self, query, blocks, dead):
        """Features of all blocks, on the way to the host: [blocks, F] in pieces."""
        live = np.arange(blocks) < blocks - self._recent
        for start, stop in dead:
            live[start:stop] = False
        if not live.any():
            return [nothing_found(self._model, (blocks,))]
        live = np.pad(live, (0, -blocks % self._size)).reshape(-1, self._size)
        self._reach(blocks)
        asking, total, best = self._looking(query)
        before = best
        seen, shares, found = [], [], []
        for i, there in enumerate(live):
            total, each = self._attended(i, asking, there, total)
            seen.append(each)
        for each in seen:
            best, log = _shares(each, total, best)
            shares.append(log)
        for log, there in zip(shares, live, strict=True):
            before, told = _features(log, best, before, there)
            told.copy_to_host_async()
            found.append(told)
        return found

    def _looking(self, query):
        asked = self._base, query
        self.operations.add("looking", 1, looking, (self._model,), *asked)
        return looking(self._model, *asked)

    def _attended(self, i, query, live, total):
        """What the present's queries find in a piece."""
        self._follow(i, live)
        piece = self._pieces[i]
        if i + 1 < len(self._pieces):
            piece.settle()
        asked = query, piece.keys, live, total
        self.operations.add("attended", 1, attended, (), *asked)
        return attended(*asked)


def finders_of(session) -> Finding | None:
    """Those of a session whose lens has some, unless it is not to ask them."""
    if not (session.model.lens.finders and session.config.find and "lensnet" in session.params):
        return None
    of = session.model, session.params, session.tree, session.cache
    return Finding(*of, session.focus.recent, PIECE)


def found_by(session, query: jax.Array, blocks: int, dead: np.ndarray) -> Gather:
    """What is found in a session's history, once for all rounds of a refocus; see
    `Finding.look`."""
    if session.finding:
        return session.finding.look(query, blocks, dead)
    return lambda level, index: nothing_found(session.model, level.shape)


@functools.partial(jax.jit, static_argnums=0)
def looking(
    model: Wrapped, base: dict, query: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a look begins with; query: [L + 1, Q', D].

    Returns:
      Queries [P, Q, G, h], in the type of the keys; and of no blocks at all, their `total`
      [P, Q, G] and best [P, G]. Made here, they are to the other programs what those will make.
    """
    asking = finder.looking(model, base, query).astype(model.dtype)
    total = jnp.full(asking.shape[:3], -jnp.inf, jnp.float32)
    return asking, total, jnp.max(total, axis=1)


@jax.jit
def attended(
    query: jax.Array, keys: jax.Array, live: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One more piece: keys [P, n, T, h], live [n].

    Returns:
      `total` [P, Q, G] of all pieces so far, and of each block [P, Q, G, n].
    """
    flat = keys.reshape(keys.shape[0], -1, keys.shape[-1])  # [P, blocks·T, h]
    each = finder.attended(query, flat, live)
    return jnp.logaddexp(total, jax.nn.logsumexp(each, axis=-1)), each


@jax.jit
def _shares(each, total, best):
    shares = finder.log_shares(each, total)
    return jnp.maximum(best, jnp.max(shares, axis=-1)), shares


@jax.jit
def _features(shares, best, before, live):
    """Zeros for blocks that are not live: a dead one after a good one is not worth a look."""
    found = finder.block_features(shares, best, before)
    return shares[..., -1], jnp.where(live[:, None], found, 0.0)
