"""The cut through a tree that is worth the most, where what every node gains is known.

A step of the allocator (`refocus`) sees the nodes of a layout and must trust what it is told of
what lies beneath. Where the gain of every node is known, wider nodes too, the best cut is a
knapsack on a tree: a node is opened only beneath opened ones, and pays for itself or for what is
reached through it (a *valley*: a loss on the way to something better). It is solved by dynamic
programming over the levels from below: `table[node, e]` is the most that can be gained beneath a
node with e units of room; siblings are joined by (max, +) convolution, and the choices are read
off from above. With as many units as there are entries of room it is exact; with fewer, prices
are rounded up, so that a plan always fits (an ε-approximation: Ibarra and Kim, 1975; on trees:
Johnson and Niemi, 1983). All shapes are static; heads and batches are `jax.vmap`s of it.

No session runs it: tests and `experiments.bench allocator` hold the allocator against it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus.allocator import Edits, price, refocus
from mctx.focus.edits import opening, room
from mctx.focus.layout import (
    NO_DEAD,
    Dead,
    FocusConfig,
    Layout,
    initial,
    is_row,
    live_blocks,
    parent,
)

UNITS = 256  # of room, at most
TINY = 1e-6  # nats per entry: enough to be wanted
NEVER = -1e30  # nats: a node that may not be opened


class Family(NamedTuple):
    """The nodes of one level, and what was found out about them."""

    gain: jax.Array  # [n] nats of opening
    free: jax.Array  # bool [n]: may be collapsed; the others cover a guarded block or nothing
    opened: jax.Array  # [n, u + 1] nats of the node opened, by room
    within: jax.Array  # what the choice beneath is read from: ranks, or splits among children
    step: jax.Array  # [] units that opening takes, of levels ≥ 3


def sizes(cfg: FocusConfig, blocks: int) -> list[int]:
    """Nodes by level from 0 of the smallest whole tree over so many blocks."""
    top = -(-blocks // int(cfg.spans[-1]))
    return [top * int(cfg.spans[-1] // span) for span in cfg.spans]


def plan(
    cfg: FocusConfig,
    layout: Layout,
    gains: list[jax.Array],
    blocks,
    dead: Dead = NO_DEAD,
    units: int = UNITS,
) -> list[jax.Array]:
    """Which nodes the best cut opens.

    It is best among cuts of the layout's history within budget and capacity, by the sum of the
    gains of all opened nodes; a node that the layout holds open gains `hysteresis` per entry
    more. Where rows are scarce as well as entries it is only near the best: an edit is then
    priced by the larger share.

    Args:
      gains: by level from 1, float [sizes(cfg, …)[level]] nats of opening each node, signed.
      blocks: complete blocks of the history, int32; `sizes` cover them.
    Returns:
      By level from 1, bool [n] of the nodes that have nodes beneath them in the cut.
    """
    free = [_free(cfg, level, len(g), blocks) for level, g in enumerate(gains, 1)]
    prices, space = _prices(cfg, blocks, dead)
    held = held_open(cfg, layout, [len(g) for g in gains])
    live = [
        live_blocks(cfg, dead, level, jnp.arange(len(g))) > 0 for level, g in enumerate(gains, 1)
    ]
    gains = [
        jnp.where(here & alive, gain + cfg.hysteresis * takes * open_, NEVER)
        for gain, here, alive, takes, open_ in zip(
            gains, free, live, prices[1:], held, strict=True
        )
    ]
    # The most that can be spent is known statically: a smaller budget needs fewer units.
    units = min(units, cfg.budget)
    unit = jnp.maximum(space / units, 1.0)
    families = _ascend(cfg, gains, free, prices, unit, units)
    return _descend(families, jnp.floor(space / unit).astype(jnp.int32))


def _free(cfg, level, count, blocks):
    """Nodes that cover no sink, no recent block and nothing beyond the history: bool [count]."""
    span = int(cfg.spans[level])
    index = jnp.arange(count)
    # By index, not by block: a product could leave int32.
    return (index >= -(-cfg.sink // span)) & (index < jnp.maximum(blocks - cfg.recent, 0) // span)


def _prices(cfg, blocks, dead):
    """What opening a node takes, by level [levels + 1], and how much room the coarsest leaves."""
    entries, nodes = (jnp.asarray(x, jnp.float32) for x in opening(cfg))
    spare, rows = (jnp.asarray(x, jnp.float32) for x in room(cfg, initial(cfg, blocks, dead)))
    scarce = rows < blocks - (cfg.capacity - cfg.headroom - rows)
    rate = jnp.where(scarce, spare / jnp.maximum(rows, 1.0), 0.0)
    return jnp.maximum(jnp.maximum(entries, nodes * rate), 0.0), jnp.maximum(spare, 0.0)


def held_open(cfg: FocusConfig, layout: Layout, counts: list[int]) -> list[jax.Array]:
    """By level from 1, bool [count]: nodes that have nodes beneath them in a layout."""
    found, row = [], is_row(layout)
    for level, count in enumerate(counts, 1):
        wider = jnp.asarray(cfg.spans[level] // np.minimum(cfg.spans, cfg.spans[level]))
        above = layout.index // wider[layout.level]
        beneath = row & (layout.level < level)
        where = jnp.where(beneath, above, count)
        found.append(jnp.zeros(count, bool).at[where].set(True, mode="drop"))
    return found


def _ascend(cfg, gains, free, prices, unit, units):
    """Tables from below; the last family is the whole history, opened and free of charge."""
    room_of = jnp.arange(units + 1) * unit
    families, above = [], [*zip(gains[1:], free[1:], prices[2:], strict=True)]
    above.append((jnp.zeros(1), jnp.zeros(1, bool), 0.0))
    table = None
    for gain, here, takes in above:
        # What covers a guarded block stands open and costs nothing.
        own, takes = jnp.where(here, gain, 0.0), jnp.where(here, takes, 0.0)
        if table is None:
            inside, within = _best_blocks(gains[0], len(own), room_of, prices[1], takes)
            step = 0
        else:
            inside, within = _join(table.reshape(len(own), -1, units + 1))
            step = jnp.ceil(takes / unit - 1e-4).astype(jnp.int32)
            inside = _shift(inside, step)
        opened = jnp.maximum(own[:, None] + inside, NEVER)
        families.append(Family(own, here, opened, within, jnp.broadcast_to(step, own.shape)))
        table = jnp.where(here[:, None], jnp.maximum(opened, 0.0), opened)
    return families


def _best_blocks(gain, parents, room_of, price, opening_price):
    """The best gists to open beneath each parent, whose order needs no convolution.

    Returns:
      [parents, u + 1] nats by room, -inf where the parent itself does not fit; and the gists'
      ranks among their siblings (k for what gains nothing) with how many fit, by room.
    """
    gain = gain.reshape(parents, -1)
    k = gain.shape[1]
    order = jnp.argsort(-gain, axis=1)
    worth = jnp.maximum(jnp.take_along_axis(gain, order, axis=1), 0.0)
    sums = jnp.concatenate([jnp.zeros((parents, 1)), jnp.cumsum(worth, axis=1)], axis=1)
    rank = jnp.where(gain > 0, jnp.argsort(order, axis=1), k)
    left = room_of - opening_price[:, None]
    fit = jnp.clip(jnp.floor(left / price + 1e-4).astype(jnp.int32), 0, k)
    nats = jnp.where(left >= -1e-3, jnp.take_along_axis(sums, fit, axis=1), -jnp.inf)
    return nats, (rank, fit)


def _join(tables):
    """Tables of siblings [n, k, u + 1] -> the best sum [n, u + 1], and each child's share of the
    room of the first so many children [k, n, u + 1]."""
    u = tables.shape[-1]
    total = jnp.arange(u)[:, None]
    left = total - jnp.arange(u)  # [room, share]

    def add(sofar, child):
        sums = jnp.where(left >= 0, sofar[:, jnp.maximum(left, 0)] + child[:, None], -jnp.inf)
        share = jnp.argmax(sums, axis=-1)
        return jnp.max(sums, axis=-1), share.astype(jnp.int32)

    return jax.lax.scan(add, jnp.zeros_like(tables[:, 0]), jnp.moveaxis(tables, 1, 0))


def _shift(table, step):
    """[n, u + 1] of what is left -> of what there is, before `step` [n] units are taken."""
    at = jnp.arange(table.shape[1]) - step[:, None]
    return jnp.where(at >= 0, jnp.take_along_axis(table, jnp.maximum(at, 0), axis=1), -jnp.inf)


def _descend(families, space):
    """Reads the choices off the tables: bool [n] by level from 1."""
    share, reached = space[None], jnp.ones(1, bool)
    found = []
    for family in reversed(families):
        worth = jnp.take_along_axis(family.opened, share[:, None], axis=1)[:, 0]
        is_open = reached & (~family.free | (worth > 0))
        found.append(is_open)
        if isinstance(family.within, tuple):
            rank, fit = family.within
            most = jnp.take_along_axis(fit, share[:, None], axis=1)
            found.append((is_open[:, None] & (rank < most)).reshape(-1))
            break
        share = _shares(family.within, jnp.maximum(share - family.step, 0))
        reached = jnp.repeat(is_open, len(share) // len(is_open))
    return found[:0:-1]  # less the whole history


def _shares(splits, share):
    """[k, n, u + 1] and [n] units -> [n · k], each child's."""

    def give(left, split):
        one = jnp.take_along_axis(split, left[:, None], axis=1)[:, 0]
        return left - one, one

    return jax.lax.scan(give, share, splits, reverse=True)[1].T.reshape(-1)


def refocus_known(
    cfg: FocusConfig,
    layout: Layout,
    gains: list[jax.Array],
    blocks,
    now,
    dead: Dead = NO_DEAD,
    units: int = UNITS,
) -> tuple[Layout, Edits]:
    """Moves a layout to the best cut, several levels in one refocus (design: law 1 afterwards).

    The edits are those of `refocus`, told what the plan wants: so budget, capacity, `max_edits`
    (of all levels together) and `cooldown` are kept as there, and what they forbid now is left to
    the next refocus. Room that rounded prices leave goes to the best blocks that fit.

    Args: as of `plan`; `now` is the number of this refocus.
    Returns:
      The new layout and all that was done to it.
    """
    wanted = plan(cfg, layout, gains, blocks, dead, units)
    planned, filled = _utilities(cfg, gains, wanted, held_open(cfg, layout, [*map(len, gains)]))
    first = jnp.asarray(np.cumsum([0, 0, *map(len, gains)])[:-1])

    def known(table, level, index):
        level = jnp.clip(level, 1, cfg.levels)
        return table[jnp.clip(first[level] + index, 0, len(table) - 1)]

    def step(state):
        layout, edits, tries, filling = state
        table = jnp.where(filling, filled, planned)
        up, above = parent(cfg, layout.level, layout.index)
        own = known(table, layout.level, layout.index)
        left = cfg.max_edits - edits.expanded - edits.collapsed
        layout, done = refocus(cfg, layout, own, known(table, up, above), blocks, now, dead, left)
        still = done.expanded + done.collapsed + done.forced == 0
        sums = (old + new for old, new in zip(edits[:3], done[:3], strict=True))
        return layout, Edits(*sums, done.spent), tries + 1, filling + still

    # Down and up again by a level each, once to see that it is done, and as often for the rest.
    most = 2 * cfg.levels + 4
    edits = Edits(*jnp.zeros(4, jnp.int32))
    state = layout, edits, jnp.int32(0), jnp.int32(0)
    state = jax.lax.while_loop(lambda s: (s[3] < 2) & (s[2] < most), step, state)
    return state[0], state[1]


def _utilities(cfg, gains, wanted, held):
    """Utilities that lead `refocus` to a plan, and those that fill what room is left: flat."""
    prices = price(cfg)
    planned, worth, cost = [], 0.0, 0.0
    for level, (gain, want) in enumerate(zip(gains, wanted, strict=True), 1):
        if level > 1:
            worth, cost = (x.reshape(len(gain), -1).sum(1) for x in (worth, cost))
        worth = jnp.where(want, gain + worth, 0.0)
        cost = jnp.where(want, prices[level] + cost, 0.0)
        per_entry = jnp.maximum(worth / jnp.maximum(cost, 1e-6), TINY)
        unwanted = jnp.full(len(gain), -(1.0 + cfg.hysteresis))
        if level == 1:  # what filled spare room before may stay until the plan needs it
            unwanted = jnp.where(held[0] & (gain > 0), TINY, unwanted)
        planned.append(jnp.where(want, per_entry, unwanted) * prices[level])
    return jnp.concatenate(planned), jnp.concatenate([gains[0], *planned[1:]])
