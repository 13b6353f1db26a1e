"""Which nodes a training example shows: simple layouts of one level, and the allocator's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mctx.focus import allocator, layout
from mctx.focus.bank import BankShape, shown_nodes
from mctx.focus.layout import FocusConfig


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How layouts are drawn.

    Attributes:
      levels: probability of showing the past as LOD1, LOD2, … alone.
      recent: numbers of recent blocks kept as tokens, drawn uniformly; the continuation right
        after the gists is where the signal is strongest, so 0 should be common.
    """

    levels: tuple[float, ...] = (0.6, 0.25, 0.15)
    recent: tuple[int, ...] = (0, 0, 2, 8)


def one_level(
    shape: BankShape, mixture: Mixture, key: jax.Array, batch: int, end: int
) -> jax.Array:
    """The last few nodes of one level, then `recent` blocks as tokens: [B, N] of the bank.

    Only the first `end` blocks of the bank are the past. How many nodes are shown is drawn
    geometrically, from one to all: a curriculum in every batch. Where not one node of the drawn
    level is complete, LOD1 stands in for it, and so it does between its last whole node and the
    recent blocks.
    """
    keys = jax.random.split(key, 3)
    chances = jnp.log(jnp.asarray(mixture.levels))
    level = 1 + jax.random.categorical(keys[0], chances, shape=(batch, 1))
    pick = jax.random.randint(keys[1], (batch, 1), 0, len(mixture.recent))
    recent = jnp.asarray(mixture.recent)[pick]
    span = jnp.asarray(shape.spans)
    level = jnp.where(span[level] > end - recent, 1, level)
    border = (end - recent) // span[level] * span[level]  # on the grid of their own level
    count = jnp.exp2(jax.random.uniform(keys[2], (batch, 1)) * jnp.log2(border / span[level]))
    first = border - count.round().astype(jnp.int32) * span[level]
    start = jnp.asarray(shape.node_block)[None]  # [1, N]
    stop = start + span[shape.node_level][None]
    gists = (shape.node_level[None] == level) & (start >= first) & (stop <= border)
    between = (shape.node_level[None] == 1) & (start >= border) & (stop <= end - recent)
    tokens = (shape.node_level[None] == 0) & (start >= end - recent) & (start < end)
    return gists | between | tokens


def most_rows(shape: BankShape, focus: FocusConfig, mixture: Mixture) -> int:
    """The most rows of a bank that a layout of this module shows."""
    alone = shape.blocks * shape.gist.entries[0] + max(mixture.recent) * shape.gist.block
    return max(alone, focus.budget)


def allocated(shape: BankShape, focus: FocusConfig, key: jax.Array, batch: int) -> jax.Array:
    """Layouts of the real allocator under random utilities: [B, N] of the bank."""
    scores = jax.random.exponential(key, (batch, shape.blocks))
    return shown_nodes(shape, descend(shape, focus, scores))


def descend(shape: BankShape, focus: FocusConfig, block_utility: jax.Array) -> layout.Layout:
    """The allocator run to the bottom on known block utilities.

    Args:
      block_utility: [B, blocks], nats of seeing each block as tokens; a coarser node is worth the
        best it covers (design: LensNet, labels).
    """
    table = node_utility(shape, block_utility)  # [B, N]
    start = layout.initial(focus, shape.blocks)

    def run(table):
        def once(now, current):
            own, above = layout_utility(shape, focus, current, table)
            return allocator.refocus(focus, current, own, above, shape.blocks, now)[0]

        return jax.lax.fori_loop(1, shape.gist.levels + 1, once, start)

    return jax.vmap(run)(table)


def node_utility(shape: BankShape, block_utility: jax.Array) -> jax.Array:
    """[B, blocks] -> [B, N]: a node's utility is the best of the blocks beneath it."""
    levels = []
    for level, count in enumerate(shape.counts()):
        wide = shape.spans[level]
        covered = block_utility[:, : count * wide].reshape(block_utility.shape[0], count, wide)
        levels.append(covered.max(axis=-1))
    return jnp.concatenate(levels, axis=1)


def layout_utility(
    shape: BankShape, focus: FocusConfig, current: layout.Layout, table: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the allocator wants to know of a layout's nodes and of their parents.

    Args:
      table: [N], nats of the best block of every node of the bank.

    Returns:
      [n] and [n], nats of expanding each node and its parent. A coarse node's best block is a
      utility per entry, so it is priced as the allocator prices that node's expansion.
    """
    first = jnp.asarray(shape.first_node)
    scale = jnp.asarray(allocator.price_scale(focus))

    def look_up(level, index):
        level = jnp.minimum(level, focus.levels)
        where = jnp.clip(first[level] + index, 0, table.shape[0] - 1)
        return table[where] * scale[level]

    own = look_up(current.level, current.index)
    below_top = jnp.minimum(current.level, focus.levels - 1)
    return own, look_up(*layout.parent(focus, below_top, current.index))
