"""Lens scores in, edited layouts out: the part of a refocus that decides.

Scores are nats of the best block in a node, wherever they come from: LensNet, a table made by a
baseline, or hindsight. The layouts of all heads are one pytree with a leading head axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus import allocator, layout
from mctx.focus.allocator import Edits, price_scale
from mctx.focus.layout import NO_DEAD, Dead, FocusConfig, Layout
from mctx.focus.staging import best_beneath
from mctx.models.lensnet import Nodes, utility
from mctx.models.wrapped import Wrapped
from mctx.runtime.buffer import within
from mctx.runtime.shelf import INDEX_MASK, LEVEL_SHIFT, Shelf
from mctx.tree.documents import live_within
from mctx.tree.store import Tree

Gather = Callable[[np.ndarray, np.ndarray], np.ndarray]  # level, index -> of each node [..., W]

class Scores(NamedTuple):
    """Nats of the best block of each node of a layout and of each node's parent: [H, n]."""

    own: np.ndarray
    above: np.ndarray


class Candidates(NamedTuple):
    """The nodes that the lens looks at in layouts [H, n]: theirs, and their parents.

    Attributes:
      layouts: these; blocks: of the history.
      level, index: [H, m], index -1 where there is none.
      where: [H, n], the place among them of what is above each node of the layouts.
      nodes: [H, m] keys, rising; of a block and of its gist it is the same. order: [H, m], the
        place of each among the candidates.
    """

    layouts: Layout
    blocks: int
    level: np.ndarray
    index: np.ndarray
    where: np.ndarray
    nodes: np.ndarray
    order: np.ndarray


class Prepared(NamedTuple):
    """A look of which all is known but the query: the candidates, what the lens is told of them,
    and when the shelf was asked (`Shelf.clock`)."""

    candidates: Candidates
    facts: np.ndarray
    clock: int


class Look(NamedTuple):
    """What the lens saw, or will have seen when it is waited for.

    Attributes:
      nodes: [H, m] keys of the candidates, rising; of a block and of its gist it is the same.
      order: [H, m], the place of each in `seen`.
      seen: [H, m], nats, on the way to the host.
    """

    nodes: np.ndarray
    order: np.ndarray
    seen: jax.Array


def prefetch(tree: Tree, layouts: Layout, before: Layout | None = None) -> None:
    """Asks for the gists that the next refocus looks at if it opens what stands in the layouts,
    and did not in those for which this was called `before`."""
    nodes = _coarse(layouts)
    if before is not None:
        nodes = nodes[~within(nodes, _coarse(before))[0]]
    for one in range(2, tree.spec.levels + 1):
        some = nodes[nodes >> LEVEL_SHIFT == one] & INDEX_MASK
        fanout = tree.spec.fanouts[one - 1]
        children = (some[:, None] * fanout + np.arange(fanout)).ravel()
        children = children[children < tree.count(one - 1)]
        if len(children):
            tree.prefetch(one - 1, children)


def _coarse(layouts):
    """Keys of all nodes of level 2 and up, rising."""
    level, index = np.asarray(layouts.level, np.int64), np.asarray(layouts.index)
    here = (level >= 2) & (index >= 0)
    return np.unique(level[here] << LEVEL_SHIFT | index[here])


@functools.cache
def _host() -> jax.Device | None:
    """The host's own processor, where JAX was given it beside an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def on_host(function: Callable, *args):
    """What a compiled function returns, made and left on the host.

    Layouts live there, and editing them is many small steps, and loops that end when they are
    done: an accelerator would wait for its own answer at every one of them.
    """
    return later_on_host(function, *args)()


def later_on_host(function: Callable, *args) -> Callable:
    """As `on_host`, begun here beside what follows, and waited for by whoever calls."""

    def here(x):  # `device_get` of many small arrays takes as long as an edit
        return np.asarray(x) if isinstance(x, jax.Array) else x

    with jax.default_device(_host()):
        made = function(*jax.tree.map(here, args))
    return lambda: jax.tree.map(here, made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(cfg: FocusConfig, heads: int, blocks, dead: Dead = NO_DEAD) -> Layout:
    """The coarsest layout, once for every head: [H, n]."""
    one = layout.initial(cfg, blocks, dead)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (heads, *x.shape)), one)


@functools.partial(jax.jit, static_argnums=0)
def append(cfg: FocusConfig, layouts: Layout, blocks, fresh, now, dead: Dead = NO_DEAD) -> Layout:
    """Adds the newest `fresh` of the history's `blocks` blocks to every head."""

    def one_more(i, layouts):
        newest = blocks - fresh + i + 1
        return jax.vmap(lambda one: layout.append(cfg, one, newest, now, dead))(layouts)

    return jax.lax.fori_loop(0, fresh, one_more, layouts)


@jax.jit
def newest(query: jax.Array, states: jax.Array) -> jax.Array:
    """The query [L + 1, Q, D] of who has read on: of the last Q tokens, those with `states`."""
    return jnp.concatenate([query, states], axis=1)[:, -query.shape[1] :]


@functools.partial(jax.jit, static_argnums=0)
def edit(
    cfg: FocusConfig, layouts: Layout, scores: Scores, blocks, now, dead: Dead = NO_DEAD
) -> tuple[Layout, Edits]:
    """One level step of the allocator for every head."""
    scale = jnp.asarray(price_scale(cfg))

    def one(current, own, above):
        up = jnp.minimum(current.level + 1, cfg.levels)
        return allocator.refocus(
            cfg, current, own * scale[current.level], above * scale[up], blocks, now, dead
        )

    return jax.vmap(one)(layouts, *scores)


@functools.partial(jax.jit, static_argnums=(0, 1))
def entries(cfg: FocusConfig, heads: int, layouts: Layout) -> layout.Entries:
    return jax.vmap(lambda one: layout.entries(cfg, one))(layouts)


def parents(
    cfg: FocusConfig, level: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """On the host: the node above each; top nodes name themselves."""
    up = np.minimum(level + 1, cfg.levels)
    return up, np.where(up > level, index // cfg.children[up], index)


def lens_scores(
    model: Wrapped,
    params: dict,
    cfg: FocusConfig,
    layouts: Layout,
    shelf: Shelf,
    found: Gather,
    query: jax.Array,
    blocks: int,
    dead: np.ndarray,
    heads: np.ndarray,
    last: Look | None = None,
    prepared: Prepared | None = None,
) -> tuple[Callable[[], Scores], Look]:
    """LensNet over the nodes of every layout and their parents, each looked at once.

    The device is asked here, and waited for by whoever calls for the scores.

    As in training, candidates are the gists that cover none of the recent blocks, and no node is
    there twice: a block and its gist are one candidate, and siblings share one parent. Nodes
    that are no candidates score zero.

    Args:
      layouts: [H, n], on the host.
      shelf: of gists. found: what the lens's finders say of nodes (`finding.found_by`).
      query: [L + 1, Q, D].
      dead: runs of dead blocks [r, 2]; what covers no others is no candidate.
      heads: [H], the adapters to use.
      last: what was seen with the same query, history and heads. Layouts that differ in which
        blocks are tokens have the same candidates: nothing is looked at again.
      prepared: of these layouts, if they were before.
    """
    if prepared is None or prepared.candidates.layouts is not layouts:
        prepared = None
    some = prepared.candidates if prepared else candidates(cfg, layouts, blocks)
    if last is None or not np.array_equal(some.nodes, last.nodes):
        if prepared is None or prepared.clock != shelf.clock:
            prepared = prepare(cfg, some, shelf, dead)
        nodes = shelf.table, prepared.facts, found(some.level, some.index), heads.astype(np.int32)
        seen = _apply_lens(model, params["lensnet"], query, *nodes)
        seen.copy_to_host_async()
        last = Look(some.nodes, some.order, seen)
    return functools.partial(_scores_of, last, some.order, some.where), last


def candidates(cfg: FocusConfig, layouts: Layout, blocks: int) -> Candidates:
    """Of layouts [H, n] of a history of so many blocks."""
    level, index = np.asarray(layouts.level), np.asarray(layouts.index)
    up, where = _distinct_parents(cfg, layouts, blocks)
    level = np.concatenate([level, up[0]], axis=1)
    index = np.concatenate([index, up[1]], axis=1)
    keys = np.maximum(level, 1).astype(np.int64) << LEVEL_SHIFT | index
    order = np.argsort(keys, axis=1)
    nodes = np.take_along_axis(keys, order, axis=1)
    return Candidates(layouts, blocks, level, index, where, nodes, order)


def prepare(cfg: FocusConfig, some: Candidates, shelf: Shelf, dead: np.ndarray) -> Prepared:
    """What the lens is told of candidates, whose gists stand on the shelf afterwards: facts int32
    [4, H, m], the row of the shelf's table, level, distance and validity."""
    level, index = some.level, some.index
    end = (index + 1) * cfg.spans[level]
    live = live_within(dead, end - cfg.spans[level], end) > 0
    valid = (index >= 0) & (end <= some.blocks - cfg.recent) & live
    places, distance = shelf.places(level, index), np.maximum(some.blocks - end, 0)
    facts = np.stack([places, np.maximum(level, 1), distance, valid]).astype(np.int32)
    return Prepared(some, facts, shelf.clock)


def _scores_of(look, order, where):
    """Scores of the nodes that stood in `order` [H, m], and of those `where` [H, n] above the first
    n; waits for the look."""
    rising = np.take_along_axis(np.asarray(look.seen), look.order, axis=1)
    scores = np.empty_like(rising)
    np.put_along_axis(scores, order, rising, axis=1)
    return Scores(scores[:, : where.shape[1]], np.take_along_axis(scores, where, axis=1))


def most_parents(cfg: FocusConfig, nodes: int) -> int:
    """How many candidates there can be above the nodes of one layout.

    A parent at level l that ends before the recent blocks covers at least K_l nodes of a tiling,
    none of them another's: so there are at most n / K_l.
    """
    return sum(nodes // k for k in cfg.fanouts[1:])


def _distinct_parents(cfg, layouts, blocks):
    """The candidates above a layout's nodes, in a fixed number of rows.

    Returns:
      Their level and index [H, m], index -1 in empty rows; and [H, n], each node's parent among
      the nodes and these, or the node itself where its parent is no candidate of its own.
    """
    heads, n = np.shape(layouts.level)
    level, index = np.zeros((2, heads, most_parents(cfg, n)), np.int64)
    index -= 1
    where = np.tile(np.arange(n), (heads, 1))
    for h in range(heads):
        own = np.asarray(layouts.level[h]), np.asarray(layouts.index[h])
        up = parents(cfg, *own)
        end = (up[1].astype(np.int64) + 1) * cfg.spans[up[0]]
        some = (own[0] > 0) & (up[0] > own[0]) & (own[1] >= 0) & (end <= blocks - cfg.recent)
        keys = up[0][some].astype(np.int64) << LEVEL_SHIFT | up[1][some]
        found, inverse = np.unique(keys, return_inverse=True)
        level[h, : len(found)] = found >> LEVEL_SHIFT
        index[h, : len(found)] = found & INDEX_MASK
        where[h, some] = n + inverse
    return (level, index), where


@functools.partial(jax.jit, static_argnums=0)
def _apply_lens(model, lensnet, query, table, facts, found, heads):
    """Scores of nodes [H, m]; `facts`: see `prepare`, in one transfer."""
    places, level, distance, valid = facts
    nodes = Nodes(table[places], level, distance, valid > 0, found)
    states = jnp.broadcast_to(query[:, None], (query.shape[0], len(heads), *query.shape[1:]))
    logs = model.lensnet.apply({"params": lensnet}, states, nodes, heads[:, None])
    return jnp.where(nodes.valid, utility(logs[:, 0]), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def with_staging(
    cfg: FocusConfig, layouts: Layout, scores: Scores, staged: Layout, staged_scores: jax.Array
) -> Scores:
    """Scores raised to the best that each head sees in the staging view; staged: [m], [H, m]."""
    beneath = jax.vmap(lambda one, found: best_beneath(cfg, one, staged, found))
    return scores._replace(own=jnp.maximum(scores.own, beneath(layouts, staged_scores)))


def table_scores(cfg: FocusConfig, layouts: Layout, table: np.ndarray) -> Scores:
    """Scores from the worth of every block: what baselines and hindsight know.

    Args:
      table: [blocks] or [H, blocks] nats.
    """
    level, index = np.asarray(layouts.level), np.asarray(layouts.index)
    table = np.broadcast_to(table, (level.shape[0], table.shape[-1]))
    by_level = [table]
    for span in cfg.spans[1:]:
        whole = table.shape[1] // span * span
        by_level.append(table[:, :whole].reshape(len(table), -1, span).max(axis=-1))
    width = max(1, *(t.shape[1] for t in by_level))
    padded = np.stack([np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in by_level])

    def look_up(level, index):
        return padded[level, np.arange(len(level))[:, None], np.clip(index, 0, width - 1)]

    own = look_up(level, index).astype(np.float32)
    return Scores(own, look_up(*parents(cfg, level, index)).astype(np.float32))


def recency(session) -> np.ndarray:
    """[blocks], more for what came later: the worths of a session that has no lens."""
    return np.arange(1, session.blocks + 1, dtype=np.float32) / max(session.blocks, 1)
