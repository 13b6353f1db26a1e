"""What an edit of a layout is: which sets may collapse, what edits cost, and how they apply."""

import jax.numpy as jnp
import numpy as np

from mctx.focus.layout import (
    FocusConfig,
    Layout,
    by_level,
    entry_cost,
    first_child,
    is_row,
    is_shown,
    parent,
    span_blocks,
)
from mctx.focus.running import at_most, running_count


def opening(cfg: FocusConfig) -> tuple[np.ndarray, np.ndarray]:
    """Entries and rows that expanding a node costs, by level (zero at level 0)."""
    cost, children = cfg.entry_costs, cfg.children[:-1]
    entries = children * np.append(0, cost[:-1]) - cost
    entries[0] = 0
    return entries.astype(np.int32), children - 1


def room(cfg, layout):
    """Free entries and free rows; negative when blocks were appended past the budget."""
    spent = jnp.sum(entry_cost(cfg, layout))
    return cfg.budget - spent, cfg.capacity - cfg.headroom - layout.count


def siblings(cfg, layout, blocks):
    """The complete set each row may collapse with: int32 [n], its first row, n if there is none.

    No set contains a sink or a recent block.
    """
    n = layout.level.shape[-1]
    row = jnp.arange(n, dtype=jnp.int32)
    level, index = layout.level, layout.index
    size = by_level(cfg.children, level + 1)
    first = row - index % size
    last = first + size - 1
    up_level, up_index = parent(cfg, level, index)
    width = span_blocks(cfg, jnp.minimum(up_level, cfg.levels))
    # The set starts and ends where its parent does and has no row too many; a LOD0 block among
    # LOD1 gists is as wide as they are and has to be looked for.
    ends = jnp.clip(last, 0, n - 1)
    begins = jnp.clip(first, 0, n - 1)
    tokens = running_count(level == 0)
    whole = (
        is_row(layout)
        & (up_level <= cfg.levels)
        & (first >= 0)
        & (last < layout.count)
        & (level[begins] == level)
        & (level[ends] == level)
        & (index[begins] == up_index * size)
        & (index[ends] == up_index * size + size - 1)
        & ((level == 0) | (tokens[ends] == tokens[begins]))
    )
    # Compared by index, not by block: a product could leave int32 for rows that are masked.
    above_sink = up_index >= -(-cfg.sink // width)
    below_recent = up_index < jnp.maximum(blocks - cfg.recent, 0) // width
    return jnp.where(whole & above_sink & below_recent, first, n)


def rebuild(cfg, layout, expand, collapse, first, now, dead):
    """Applies edits with one gather.

    Args:
      expand: bool [n], rows to open. collapse: bool [n], first rows of the sets to close.
      first: int32 [n], the first row of each row's set (n if none).
    Returns:
      The layout, and for each of its rows the row it came from.
    """
    n = layout.level.shape[-1]
    row = jnp.arange(n, dtype=jnp.int32)
    closing = jnp.append(collapse, False)[first]
    opened = jnp.where(expand, by_level(cfg.children, layout.level), 1)
    becomes = jnp.where(closing, row == first, opened)
    ends = running_count(jnp.where(is_row(layout), becomes, 0))
    count = ends[-1]
    source = jnp.minimum(at_most(ends, n), n - 1)
    used = row < count
    change = (expand.astype(jnp.int32) - closing)[source]
    level, index = layout.level[source], layout.index[source]
    rank = row - (ends - becomes)[source]
    index = jnp.select(
        [change > 0, change < 0],
        [first_child(cfg, level, index)[1] + rank, parent(cfg, level, index)[1]],
        index,
    )
    level = jnp.where(used, level - change, 0)
    index = jnp.where(used, index, -1)
    edited = Layout(
        level=level,
        index=index,
        shown=used & is_shown(cfg, dead, level, index),
        born=jnp.where(change == 0, layout.born[source], now),
        change=jnp.where(change == 0, layout.change[source], change),
        count=count,
    )
    return edited, source
