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
from mctx.focus.layout import FocusConfig, Layout
from mctx.focus.staging import best_beneath
from mctx.models.lensnet import Nodes, utility
from mctx.models.router import statistics
from mctx.models.wrapped import Wrapped
from mctx.tree.store import Tree

Gather = Callable[[np.ndarray, np.ndarray], np.ndarray]  # level, index -> gists [..., W]


class Scores(NamedTuple):
    """Nats of the best block of each node of a layout and of each node's parent: [H, n]."""

    own: jax.Array
    above: jax.Array


def gatherer(tree: Tree) -> Gather:
    """Gists of nodes of mixed levels; an LOD0 node is described by its LOD1 twin, and what the
    tree does not hold (a parent that is not complete) by zeros, which no edit will use."""

    def gather(level: np.ndarray, index: np.ndarray) -> np.ndarray:
        spec = tree.spec
        out = np.zeros((*level.shape, spec.slots * spec.gist_width), np.float32)
        twin = np.maximum(level, 1)
        for l in range(1, spec.levels + 1):
            here = (twin == l) & (index >= 0) & (index < tree.count(l))
            if here.any():
                out[here] = tree.gather(l, index[here]).reshape(here.sum(), -1)
        return out

    return gather


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(cfg: FocusConfig, heads: int, blocks) -> Layout:
    """The coarsest layout, once for every head: [H, n]."""
    one = layout.initial(cfg, blocks)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (heads, *x.shape)), one)


@functools.partial(jax.jit, static_argnums=0)
def append(cfg: FocusConfig, layouts: Layout, blocks, now) -> Layout:
    return jax.vmap(lambda one: layout.append(cfg, one, blocks, now))(layouts)


@functools.partial(jax.jit, static_argnums=0)
def edit(cfg: FocusConfig, layouts: Layout, scores: Scores, blocks, now) -> tuple[Layout, Edits]:
    """One level step of the allocator for every head."""
    scale = jnp.asarray(price_scale(cfg))

    def one(current, own, above):
        up = jnp.minimum(current.level + 1, cfg.levels)
        return allocator.refocus(
            cfg, current, own * scale[current.level], above * scale[up], blocks, now
        )

    return jax.vmap(one)(layouts, *scores)


@functools.partial(jax.jit, static_argnums=(0, 1))
def entries(cfg: FocusConfig, heads: int, layouts: Layout) -> layout.Entries:
    return jax.vmap(lambda one: layout.entries(cfg, one))(layouts)


def parents(cfg: FocusConfig, level: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """On the host: the node above each; top nodes name themselves."""
    up = np.minimum(level + 1, cfg.levels)
    return up, np.where(up > level, index // cfg.children[up], index)


def lens_scores(
    model: Wrapped,
    params: dict,
    cfg: FocusConfig,
    layouts: Layout,
    gather: Gather,
    query: np.ndarray,
    blocks: int,
    heads: np.ndarray,
) -> Scores:
    """LensNet over the nodes of every layout and their parents.

    Args:
      layouts: [H, n], on the host.
      query: [L + 1, Q, D].
      heads: [H], the adapters to use.
    """
    level, index = np.asarray(layouts.level), np.asarray(layouts.index)
    above = parents(cfg, level, index)
    both = np.concatenate([level, above[0]], axis=1), np.concatenate([index, above[1]], axis=1)
    alive = np.arange(level.shape[1]) < np.asarray(layouts.count)[:, None]
    alive = np.concatenate([alive, alive], axis=1)
    end = (both[1] + 1) * cfg.spans[both[0]]
    nodes = Nodes(
        gists=gather(*both),
        level=np.maximum(both[0], 1).astype(np.int32),
        distance=np.maximum(blocks - end, 0).astype(np.int32),
        valid=alive & (end <= blocks) & (both[1] >= 0),
    )
    scores = _apply_lens(model, params["lensnet"], query, nodes, heads.astype(np.int32))
    return Scores(*jnp.split(scores, 2, axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _apply_lens(model, lensnet, query, nodes, heads):
    states = jnp.broadcast_to(query[:, None], (query.shape[0], len(heads), *query.shape[1:]))
    logs = model.lensnet.apply({"params": lensnet}, states, nodes, heads[:, None])
    return utility(logs[:, 0])


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
    width = max(t.shape[1] for t in by_level)
    padded = np.stack([np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in by_level])

    def look_up(level, index):
        return padded[level, np.arange(len(level))[:, None], np.clip(index, 0, width - 1)]

    own = look_up(level, index).astype(np.float32)
    return Scores(own, look_up(*parents(cfg, level, index)).astype(np.float32))


@jax.jit
def head_statistics(layouts: Layout, own: jax.Array) -> jax.Array:
    """What the router is told of every head: [H, STATISTICS]."""
    valid = jnp.arange(own.shape[-1]) < layouts.count[:, None]
    return statistics(own, valid & (layouts.level == 0), valid)
