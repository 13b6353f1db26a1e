"""The staging context: a wide layout between the tree and the heads, never read by the base.

It is refreshed rarely, by its own lens, and costs the base nothing. What heads draw from it is
sight: a coarse node's utility is raised to the best that the head's lens finds among the finer
nodes which staging holds beneath it, so a head descends towards what one gist cannot show, and
where staging holds nothing finer the head's own view of the coarse gist stands ("fetch past it").
Only utilities are touched, so no staging view, however stale, can break a layout (law 1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mctx.focus.layout import FocusConfig, Layout, is_row, start_block


def best_beneath(
    cfg: FocusConfig, layout: Layout, staged: Layout, scores: jax.Array
) -> jax.Array:
    """The best score that a staging view holds beneath each node of a layout.

    Args:
      cfg: of the layout; both share the fanouts.
      layout: [n] nodes. staged: [m] nodes of a tiling of (a prefix of) the same history.
      scores: [m], nats of the best block of each staged node.

    Returns:
      [n]; -inf where nothing finer is staged.
    """
    n = layout.level.shape[-1]
    end = jnp.iinfo(jnp.int32).max
    starts = jnp.where(is_row(layout), start_block(cfg, layout.level, layout.index), end)
    staged_start = start_block(cfg, staged.level, staged.index)
    home = jnp.searchsorted(starts, staged_start, side="right") - 1  # the node it lies in
    home = jnp.clip(home, 0, n - 1)
    finer = is_row(staged) & (staged.level < layout.level[home])
    return jax.ops.segment_max(
        jnp.where(finer, scores, -jnp.inf), jnp.where(finer, home, n), num_segments=n + 1
    )[:n]
