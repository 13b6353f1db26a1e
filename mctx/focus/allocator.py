"""The focus allocator: utilities in, an edited layout out, in one jit-compiled call.

A layout is a tree cut open to some depth. Two edits move the cut: *expand* a node to its
children, *collapse* a complete set of siblings to their parent. The allocator climbs the sum of
the utilities of all expanded nodes: expansions are offered in falling order of utility per entry,
collapsible sets are given up in rising order, and the swap that gains most is made. Each call
moves the cut one level; fixed utilities reach a fixed point, because every unforced edit gains
(design: "Focus allocator").

`refocus` takes one layout; heads and batches are `jax.vmap`s of it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus.edits import opening, rebuild, room, siblings
from mctx.focus.layout import (
    NO_DEAD,
    Dead,
    FocusConfig,
    Layout,
    by_level,
    entry_cost,
    is_row,
    live_blocks,
    parent,
)
from mctx.focus.running import at_most, largest, running_count, running_max, running_sum

PASSES = 3  # swaps a refocus tries: later ones skip offers that no longer fit
SPARE = 8  # sets looked at for each edit allowed: some are pinned, or free what is not wanted


class Edits(NamedTuple):
    """What one refocus did: int32 scalars."""

    expanded: jax.Array  # nodes opened
    collapsed: jax.Array  # sets closed for something better, or because they were unwanted
    forced: jax.Array  # sets closed to restore the budget after blocks were appended
    spent: jax.Array  # entries shown afterwards


class Offers(NamedTuple):
    """What expanding each row brings and costs: arrays [n]."""

    key: jax.Array  # nats per entry
    value: jax.Array  # nats
    entries: jax.Array  # entries that expanding costs (negative where children are silent)
    nodes: jax.Array  # rows that expanding costs
    legal: jax.Array
    home: jax.Array  # first row of the set that the node belongs to, n if none


class Holds(NamedTuple):
    """Sets of siblings that may be collapsed, the cheapest few, in that order: arrays [m]."""

    row: jax.Array  # of the set's first node
    key: jax.Array  # nats per entry, of the set or of its best member if that is more
    value: jax.Array  # nats lost by collapsing
    entries: jax.Array  # entries that collapsing frees
    nodes: jax.Array  # rows that collapsing frees
    legal: jax.Array
    pinned: jax.Array  # opened so recently that only a forced collapse may close it


class Plan(NamedTuple):
    """Edits chosen so far and the room they leave."""

    opened: jax.Array  # bool [n], over Offers
    busy: jax.Array  # bool [n + 1], first rows of sets of which a member was opened
    closed: jax.Array  # bool [m], over Holds
    entries: jax.Array  # entries still free
    nodes: jax.Array  # rows still free
    edits: jax.Array  # edits still allowed


class Scored(NamedTuple):
    """A layout with what is known of its rows."""

    layout: Layout
    utility: jax.Array  # float32 [n]
    parent_utility: jax.Array  # float32 [n]
    fresh: jax.Array  # bool [n]: made by a forced collapse of this very call


def price(cfg: FocusConfig) -> np.ndarray:
    """What expanding a node costs, by level, in entries; utility per entry = utility / price.

    Rows are scarce as well as entries (silent children cost no entries), so the price is the
    larger share of the two. A label that is itself per entry (the best gain per entry reachable
    beneath a node of level ≥ 2) becomes a utility in nats times this price.
    """
    entries, nodes = opening(cfg)
    shares = np.maximum(entries, nodes * cfg.budget / cfg.capacity)
    return np.where(np.arange(cfg.levels + 1) == 0, 1.0, shares).astype(np.float32)


def price_scale(cfg: FocusConfig) -> np.ndarray:
    """By level: turns the nats of a node's best block into a utility of expanding the node.

    What is reachable beneath a coarse node is a utility per entry: it is priced as the allocator
    prices that node's own expansion.
    """
    prices = price(cfg)
    return np.concatenate([[1.0], prices[1:] / prices[1]]).astype(np.float32)


def refocus(
    cfg: FocusConfig,
    layout: Layout,
    utility,
    parent_utility,
    blocks,
    now,
    dead: Dead = NO_DEAD,
    allowed=None,
):
    """Moves the layout one level towards what the utilities want (design: law 1 afterwards).

    If appended blocks exceed the budget, collapses are forced first, cheapest utility per entry
    before others and several levels deep if need be; they answer to neither `max_edits`, nor
    `hysteresis`, nor `cooldown`. The budget can always be met when `validate(cfg, blocks)` passes.

    Args:
      utility: float [n], nats gained by expanding each node, signed; of a LOD0 node, the nats it
        is worth as tokens (the utility of its gist). Below `-hysteresis` per entry it is
        collapsed even if there is room. See `price` for levels ≥ 2.
      parent_utility: float [n], the utility of each node's parent (of a LOD0 node, `utility`):
        what is lost when the node's set collapses.
      blocks: complete blocks of the history, int32.
      now: number of this refocus, int32; calls that iterate within one refocus share it.
      dead: blocks that are never shown and whose nodes are not opened.
      allowed: edits, int32; `max_edits` if none.
    Returns:
      The new layout and what was done to it.
    """
    utility, parent_utility = (jnp.asarray(u, jnp.float32) for u in (utility, parent_utility))
    scored = Scored(layout, utility, parent_utility, jnp.zeros(layout.level.shape, bool))
    dead = Dead(*map(jnp.asarray, dead))
    allowed = jnp.minimum(cfg.max_edits if allowed is None else allowed, 2 * cfg.capacity)

    # Rounds that restore the budget and the one that gains share one body: half the program.
    def one_round(state):
        scored, edits, stuck, _ = state
        short = _is_short(cfg, scored.layout) & ~stuck
        offers, holds = _market(cfg, scored, blocks, now, dead)
        chosen = _chosen(cfg, scored, offers, holds, allowed, short)
        collapse = _by_row(offers, holds, chosen.closed)
        scored = _apply(cfg, scored, chosen.opened, collapse, offers.home, now, dead)
        opened, closed = (jnp.sum(x, dtype=jnp.int32) for x in (chosen.opened, chosen.closed))
        forced = jnp.where(short, closed, 0)
        done = Edits(opened, closed - forced, edits.forced + forced, edits.spent)
        return scored, done, closed == 0, ~short

    nothing = jnp.int32(0)
    no = jnp.bool_(False)
    state = scored, Edits(nothing, nothing, nothing, nothing), no, no
    scored, edits, _, _ = jax.lax.while_loop(lambda state: ~state[3], one_round, state)
    return scored.layout, edits._replace(spent=jnp.sum(entry_cost(cfg, scored.layout)))


def _market(cfg, scored, blocks, now, dead):
    """All edits open to a layout."""
    layout, utility = scored.layout, scored.utility
    n = layout.level.shape[-1]
    first = siblings(cfg, layout, blocks)
    opens, frees, live = _entries(cfg, layout, dead, first)
    nodes, prices = opening(cfg)[1], price(cfg)
    up = layout.level + 1
    pin = jnp.where(now - layout.born <= (cfg.cooldown or -1), layout.change, 0)

    may_expand = is_row(layout) & (layout.level >= 1) & live
    key = jnp.where(may_expand, utility / by_level(prices, layout.level), -jnp.inf)

    def best(x):  # over the members of each set, at the set's first row
        return jax.ops.segment_max(x, first, n + 1)[:n]

    is_set = first == jnp.arange(n)
    value = jnp.where(is_set, best(scored.parent_utility), 0.0)
    # A set is kept for its best member's sake, so no expansion is lost to a collapse around it.
    hold_key = jnp.where(is_set, jnp.maximum(value / by_level(prices, up), best(key)), jnp.inf)
    rising = largest(-hold_key, min(SPARE * max(cfg.max_edits, 4), n))
    pinned = best(pin) > 0
    holds = Holds(
        rising,
        hold_key[rising],
        value[rising],
        frees[rising],
        by_level(nodes, up)[rising],
        is_set[rising],
        pinned[rising],
    )
    offers = Offers(
        key,
        utility,
        opens,
        by_level(nodes, layout.level),
        may_expand & (pin >= 0) & ~scored.fresh & (utility > 0),
        first,
    )
    return offers, holds


def _by_row(offers, holds, chosen):
    """The first rows of chosen sets: bool [n]."""
    rows = jnp.zeros(offers.key.shape, bool)
    return rows.at[holds.row].set(chosen, unique_indices=True)


def _entries(cfg, layout, dead, first):
    """What edits cost in entries: [n] of expanding each row (no less than it will be), [n] freed
    by collapsing the set that begins there, and which rows have a live block."""
    n = layout.level.shape[-1]
    costs = cfg.entry_costs
    live = live_blocks(cfg, dead, layout.level, layout.index)
    children = jnp.minimum(by_level(cfg.children, layout.level), live)
    opens = children * by_level(costs, layout.level - 1) - by_level(costs, layout.level)
    up, up_index = parent(cfg, layout.level, layout.index)
    up = jnp.minimum(up, cfg.levels)
    above = jnp.where(live_blocks(cfg, dead, up, up_index) > 0, by_level(costs, up), 0)
    frees = jax.ops.segment_sum(entry_cost(cfg, layout), first, n + 1)[:n] - above
    return jnp.where(layout.level > 0, opens, 0), frees, live > 0


class Supply(NamedTuple):
    """What giving up the first 0 … m holds of a list brings and costs: arrays [m + 1]."""

    entries: jax.Array
    nodes: jax.Array
    edits: jax.Array
    lost: jax.Array
    key: jax.Array  # of the best hold among them; [m + 2], more than all of them: inf
    for_entries: jax.Array  # the fewest holds that bring 1, 2, … entries: [most entries]
    for_nodes: jax.Array  # the fewest holds that bring 1, 2, … rows: [most rows]


def _totals(chosen, entries, nodes, value):
    """Sums over the first 0 … n chosen: entries, rows, how many and nats, float32 [n + 1] each."""
    what = jnp.stack([entries, nodes, jnp.ones_like(nodes)]).astype(jnp.float32)
    what = jnp.concatenate([what, value[None]])
    return tuple(jnp.pad(running_sum(jnp.where(chosen, what, 0.0)), ((0, 0), (1, 0))))


def _supply(cfg, holds, victims):
    totals = _totals(victims, holds.entries, holds.nodes, holds.value)
    # A silent set costs entries when it collapses to a shown parent, so sums may fall.
    most, nodes = (x.astype(jnp.int32) for x in (running_max(totals[0]), totals[1]))
    shown = cfg.budget + cfg.headroom * cfg.costs[0]  # no collapses free more
    key = jnp.concatenate([-jnp.inf, holds.key, jnp.inf], axis=None)
    return Supply(*totals, key, at_most(most, shown), at_most(nodes, cfg.capacity))


def _fewest(supply, entries, nodes):
    """The fewest holds of which the first few bring so many entries, and the first few so many
    rows; m + 1 if all of them do not. Any shape."""

    def look(table, wanted):
        place = jnp.minimum(wanted.astype(jnp.int32), len(table)) - 1
        return jnp.where(place < 0, 0, table[place])

    return jnp.maximum(look(supply.for_entries, entries), look(supply.for_nodes, nodes))


def _lists(cfg, holds, victims):
    """Choices of what to give up: what frees entries, what frees rows, either: [2 or 3, n].

    Where siblings are silent a set may free rows and no entries: it must not be closed in
    passing when entries are short. Where all are shown, the first choice and the last are one
    (but for sets that are dead altogether).
    """
    entries, nodes = holds.entries > 0, holds.nodes > 0
    silent = np.min(opening(cfg)[0][1:]) <= 0
    lists = [entries, nodes, entries | nodes] if silent else [entries | nodes, nodes]
    return jnp.stack(lists) & victims


def _is_short(cfg, layout):
    entries, nodes = room(cfg, layout)
    return (entries < 0) | (nodes < 0)


def _apply(cfg, scored, expand, collapse, first, now, dead):
    """Edits the layout and carries the scores over to the rows that collapses made."""
    layout, source = rebuild(cfg, scored.layout, expand, collapse, first, now, dead)
    fresh = collapse[source]
    utility = jnp.where(fresh, scored.parent_utility[source], scored.utility[source])
    # What the next parent is worth is not known: as much per entry as the best that is.
    prices = price(cfg)
    own, above = by_level(prices, layout.level), by_level(prices, layout.level + 1)
    guess = utility / own * above
    parent_utility = jnp.where(fresh, guess, scored.parent_utility[source])
    return Scored(layout, utility, parent_utility, fresh | scored.fresh[source])


def _chosen(cfg, scored, offers, holds, allowed, short):
    """The edits that gain; or, while the layout is short of room, collapses that restore it."""
    opened, closed = (jnp.zeros(x.key.shape, bool) for x in (offers, holds))
    busy = jnp.append(opened, False)
    plan = Plan(opened, busy, closed, *room(cfg, scored.layout), jnp.where(short, 0, allowed))
    plan = _discard_unwanted(cfg, holds, plan)

    def try_again(state):
        plan, tries, _ = state
        swapped = _swap(cfg, offers, holds, plan, short)
        return swapped, tries + 1, ~short & (0 < swapped.edits) & (swapped.edits < plan.edits)

    state = plan, jnp.int32(0), jnp.bool_(True)
    return jax.lax.while_loop(lambda s: s[2] & (s[1] < PASSES), try_again, state)[0]


def _discard_unwanted(cfg, holds, plan):
    """Closes sets of negative utility, worst first, as far as edits and entries allow."""
    one = jnp.ones_like(holds.entries)
    unwanted = holds.legal & ~holds.pinned & (holds.key < -cfg.hysteresis)
    freed, number = running_count(jnp.where(unwanted, jnp.stack([holds.entries, one]), 0))
    fits = unwanted & (plan.entries + freed >= 0) & (number <= plan.edits)
    position = jnp.arange(unwanted.shape[-1])
    closed = unwanted & (position <= jnp.max(jnp.where(fits, position, -1)))
    return _close(plan, holds, closed)


def _swap(cfg, offers, holds, plan, short):
    """Opens the best offers and closes the cheapest sets that make room, if that gains.

    Where there is less than no room, opens none and closes the cheapest sets that restore it.
    """
    gone = jnp.append(_by_row(offers, holds, plan.closed), False)[offers.home]
    wanted = offers.legal & ~plan.opened & ~gone & ~short
    free = ~holds.pinned & ~plan.closed & ~plan.busy[holds.row]
    lists = _lists(cfg, holds, holds.legal & (free | short))
    propose = partial(_best_prefix, cfg, offers, holds, plan, wanted, short)
    gain, row, opened, closed = jax.vmap(propose)(lists)
    best = jnp.argmax(gain)
    # If no list is enough, every set in sight goes up a level: repeated, the coarsest layout.
    all_up = short & (gain[best] == -jnp.inf)
    closed = jnp.where(all_up, holds.legal, closed[best])
    return _open(_close(plan, holds, closed), offers, row[best], opened[best])


def _best_prefix(cfg, offers, holds, plan, wanted, short, victims):
    """The run of best offers whose gain over the sets it pushes out is largest.

    Args:
      wanted: bool [n] over offers. victims: bool [m] over holds.
      short: no offers, but room must be made.
    Returns:
      The gain in nats (0 if nothing gains; less if room must be made, -inf if it cannot), the
      rows that offer most, which of them are opened, and the holds taken, bool [m].
    """
    supply = _supply(cfg, holds, victims)
    # An offer that could not be met alone would only block those after it.
    taken = _fewest(supply, offers.entries - plan.entries, offers.nodes - plan.nodes)
    beats = offers.key - cfg.hysteresis  # the holds that an offer may push out
    alone = wanted & (supply.key[taken] < beats)
    most = min(max(cfg.max_edits, 1), len(alone))
    row = largest(jnp.where(alone, offers.key, -jnp.inf), most)
    alone, beats = alone[row], beats[row]

    bought = offers.entries[row], offers.nodes[row], offers.value[row]
    entries, nodes, number, value = _totals(alone, *bought)
    entries, nodes = entries - plan.entries, nodes - plan.nodes
    taken = _fewest(supply, entries, nodes)
    enough = (supply.entries[taken] >= entries) & (supply.nodes[taken] >= nodes)
    # The worst offer beats the best set given up. So no set is closed around an open member:
    # a set's key is at least that of its members.
    affordable = number + supply.edits[taken] <= plan.edits
    fair = jnp.append(short, alone & (supply.key[taken[1:]] < beats) & affordable[1:])
    gain = jnp.where(fair & enough, value - supply.lost[taken], -jnp.inf)
    last = jnp.argmax(gain)
    gains = short | (gain[last] > 0)
    opened = alone & (jnp.arange(len(row)) < last) & gains
    closed = victims & (jnp.arange(len(victims)) < taken[last]) & gains
    return jnp.where(gains, gain[last], 0.0), row, opened, closed


def _close(plan, holds, closed):
    """The plan with these sets collapsed."""
    return plan._replace(
        closed=plan.closed | closed,
        entries=plan.entries + jnp.sum(jnp.where(closed, holds.entries, 0)),
        nodes=plan.nodes + jnp.sum(jnp.where(closed, holds.nodes, 0)),
        edits=plan.edits - jnp.sum(closed, dtype=jnp.int32),
    )


def _open(plan, offers, row, opened):
    """The plan with those of these rows expanded."""
    return plan._replace(
        opened=plan.opened.at[row].max(opened, unique_indices=True),
        busy=plan.busy.at[offers.home[row]].max(opened),
        entries=plan.entries - jnp.sum(jnp.where(opened, offers.entries[row], 0)),
        nodes=plan.nodes - jnp.sum(jnp.where(opened, offers.nodes[row], 0)),
        edits=plan.edits - jnp.sum(opened, dtype=jnp.int32),
    )
