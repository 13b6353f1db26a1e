"""What a working context is: nodes that tile the history, each shown or silent.

A layout is arrays of `(level, index)`; where a node starts and how wide it is follow by
arithmetic, so a misaligned span cannot be written (design: law 1). Everything here is int32 and
counted in *blocks* of `K_1` tokens: block `i` is the LOD0 node `(0, i)` when it is shown as
tokens and the LOD1 node `(1, i)` when it is shown as its gist. *Dead* blocks (padding, deleted
documents) keep their place; a node that covers no others is silent, whatever its level.

All functions take one layout; batches of layouts (heads, rows) are `jax.vmap`s of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.running import EXACT, at_most
from mctx.models.router import statistics
from mctx.tree.documents import live_within

MAX_SPAN = 2**30  # blocks: sums of a start and a width stay inside int32
MAX_BLOCKS = 2**31 - 1


class Dead(NamedTuple):
    """Blocks that are never shown, as rising runs, padded by empty ones: int32 [r] each."""

    start: jax.Array  # first block of each run
    length: jax.Array
    before: jax.Array  # dead blocks before it

    @classmethod
    def of(cls, runs: np.ndarray) -> "Dead":
        """From runs [start, stop), rising and apart: int [r, 2].

        Sizes are 32, 512, 8192, …: programs are compiled anew only where the runs outgrow one.
        """
        pad = next(size for k in range(8) if (size := 2 ** (5 + 4 * k)) >= len(runs)) - len(runs)
        start, stop = np.pad(runs, ((0, pad), (0, 0)), constant_values=MAX_BLOCKS).T
        length = stop - start
        return cls(*(x.astype(np.int32) for x in (start, length, np.cumsum(length) - length)))


NO_DEAD = Dead.of(np.zeros((0, 2), np.int64))


class LayoutError(AssertionError):
    """A layout breaks a law: an error in this program, never in what a user asked for."""


@dataclass(frozen=True)
class FocusConfig:
    """How a working context may look and how fast it may change.

    `costs` defaults to `K_1` entries for LOD0 and one for a gist; `show` to every level shown.
    """

    fanouts: tuple[int, ...] = (32, 32, 32)  # K_1, K_2, …: the highest level is their number
    costs: tuple[int, ...] = ()  # entries that a shown node costs, by level from LOD0
    show: tuple[bool, ...] = ()  # by level: is a node shown, or silent (costing nothing)?
    sink: int = 1  # first blocks of the history, always LOD0
    recent: int = 8  # last blocks of the history, always LOD0
    budget: int = 1024  # entries
    capacity: int = 1024  # rows of a layout, the static n
    headroom: int = 1  # rows a refocus leaves free for the blocks appended before the next one
    max_edits: int = 64  # a refocus's expansions + unforced collapses; ≥ capacity is unlimited
    hysteresis: float = 0.0  # nats per entry by which a newcomer must beat what it replaces
    cooldown: int = 0  # refocuses during which a changed node may not be changed back

    def __post_init__(self):
        gists = (1,) * len(self.fanouts)
        object.__setattr__(self, "costs", self.costs or (*self.fanouts[:1], *gists))
        object.__setattr__(self, "show", self.show or (True,) * (self.levels + 1))

    @property
    def levels(self) -> int:
        """The highest level."""
        return len(self.fanouts)

    @property
    def children(self) -> np.ndarray:
        """Nodes under a node, by level 0 … levels + 1; a gist of level 1 has its one block."""
        return np.array((1, 1, *self.fanouts[1:], 1), np.int32)

    @property
    def spans(self) -> np.ndarray:
        """Width in blocks of a node, by level 0 … levels."""
        return np.cumprod(self.children[:-1], dtype=np.int64).astype(np.int32)

    @property
    def entry_costs(self) -> np.ndarray:
        """Entries that a node costs, by level: nothing where the level is silent."""
        return np.where(self.show, self.costs, 0).astype(np.int32)


class Layout(NamedTuple):
    """One working context. Rows from `count` on are padding (level 0, index -1), never read."""

    level: jax.Array  # int32 [n]
    index: jax.Array  # int32 [n]
    shown: jax.Array  # bool  [n]
    born: jax.Array  # int32 [n]: number of the refocus at which the node entered
    change: jax.Array  # int32 [n]: it entered by an expansion 1, a collapse -1, otherwise 0
    count: jax.Array  # int32 []


class Entries(NamedTuple):
    """The rows that the base reads, in time order; where `valid` is false the rest is padding."""

    level: jax.Array  # int32 [budget]
    index: jax.Array  # int32 [budget]
    offset: jax.Array  # int32 [budget]: token of the block, or slot of the gist
    rank: jax.Array  # int32 [budget]: the layout's row that the entry belongs to
    valid: jax.Array  # bool  [budget]


def head_statistics(layout: Layout, own: jax.Array) -> jax.Array:
    """What the router is told of a head: [..., STATISTICS].

    Args:
      layout: [..., n]. own: [..., n], what the head's lens says of each of its nodes.
    """
    there = jnp.arange(own.shape[-1]) < layout.count[..., None]
    return statistics(own, there & (layout.level == 0), there)


def by_level(values, level) -> jax.Array:
    """The value of each level; of levels outside, the nearest's. Levels are few: to compare with
    all of them is faster than to gather."""
    values = np.asarray(values)
    found = jnp.asarray(values[-1])
    for place in reversed(range(len(values) - 1)):
        found = jnp.where(level <= place, values[place], found)
    return found


def span_blocks(cfg: FocusConfig, level) -> jax.Array:
    """Width in blocks of a node of `level` (any shape)."""
    return by_level(cfg.spans, level)


def start_block(cfg: FocusConfig, level, index) -> jax.Array:
    """First block of node `(level, index)`."""
    return index * span_blocks(cfg, level)


def live_blocks(cfg: FocusConfig, dead: Dead, level, index) -> jax.Array:
    """Blocks of node `(level, index)` that are not dead (any shape)."""
    start = start_block(cfg, level, index)
    stop = start + span_blocks(cfg, level)
    before_start, before_stop = _dead_before(dead, jnp.stack([start, stop]))
    return stop - start - (before_stop - before_start)


def _dead_before(dead, block):
    # Comparing with few runs compiles and runs faster than searching among them.
    method = "compare_all" if len(dead.start) <= 32 else "scan"
    run = jnp.searchsorted(dead.start, block, side="right", method=method) - 1
    start, length, before = (x[jnp.maximum(run, 0)] for x in map(jnp.asarray, dead))
    return jnp.where(run < 0, 0, before + jnp.minimum(block - start, length))


def is_shown(cfg: FocusConfig, dead: Dead, level, index) -> jax.Array:
    """Whether the base reads a node that is in a layout: its level is shown, and it has life."""
    return by_level(cfg.show, level) & (live_blocks(cfg, dead, level, index) > 0)


def parent(cfg: FocusConfig, level, index) -> tuple[jax.Array, jax.Array]:
    """`(level, index)` of the node above; a block's parent is its own gist."""
    return level + 1, index // by_level(cfg.children, level + 1)


def first_child(cfg: FocusConfig, level, index) -> tuple[jax.Array, jax.Array]:
    """`(level, index)` of the first node below; the others follow by index."""
    return level - 1, index * by_level(cfg.children, level)


def is_row(layout: Layout) -> jax.Array:
    """Which rows hold a node: bool [n]."""
    return jnp.arange(layout.level.shape[-1]) < layout.count


def entry_cost(cfg: FocusConfig, layout: Layout) -> jax.Array:
    """Entries that each row costs: int32 [n], zero for silent nodes and padding."""
    cost = by_level(cfg.costs, layout.level)
    return jnp.where(is_row(layout) & layout.shown, cost, 0)


def coarsest(cfg: FocusConfig, blocks) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """The coarsest tiling as runs of equal nodes, in time order.

    Args:
      blocks: complete blocks of the history, int32 of any shape (traced or not).
    Returns:
      `level [runs]`, first `index [runs, …]` and number of nodes `count [runs, …]`, of
      `2·levels + 1` runs: the sinks, levels rising, the top, levels falling, the recent blocks.
    """
    blocks = jnp.asarray(blocks, jnp.int32)
    sinks = jnp.minimum(cfg.sink, blocks)
    low, high = sinks, jnp.maximum(sinks, blocks - cfg.recent)
    tail = high
    rising, falling = [(0, jnp.zeros_like(blocks), sinks)], [(0, tail, blocks)]
    for level, (span, above) in enumerate(zip(cfg.spans[1:], cfg.spans[2:], strict=False), 1):
        # What whole nodes of the next level can cover; nothing is an empty span at the far end.
        inner_low = jnp.minimum(-(-low // above) * above, high)
        inner_high = jnp.maximum(high // above * above, inner_low)
        inner_low, inner_high = (
            jnp.where(inner_low < inner_high, edge, high) for edge in (inner_low, inner_high)
        )
        rising.append((level, low // span, inner_low // span))
        falling.append((level, inner_high // span, high // span))
        low, high = inner_low, inner_high
    top = cfg.spans[-1]
    runs = [*rising, (cfg.levels, low // top, high // top), *reversed(falling)]
    level, first, stop = zip(*runs, strict=True)
    return np.array(level, np.int32), jnp.stack(first), jnp.stack(stop) - jnp.stack(first)


def minimum_budget(cfg: FocusConfig, blocks) -> np.ndarray:
    """Entries that sinks, recent blocks and the coarsest cover of the rest cost together.

    `blocks` may be an array of history lengths: the cost is not monotone in the length.
    """
    level, _, count = coarsest(cfg, blocks)
    return np.tensordot(cfg.entry_costs[level].astype(np.int64), np.asarray(count), 1)


def validate(cfg: FocusConfig, blocks: int = 0) -> None:
    """Refuses a configuration that cannot hold a history of `blocks` blocks.

    Raises:
      UserError: one sentence that says what to change.
    """
    levels = cfg.levels
    wants = [
        (levels >= 1, "Give at least one fanout."),
        (all(k >= 2 for k in cfg.fanouts), f"Fanouts must be at least 2; got {cfg.fanouts}."),
        (
            np.prod(cfg.fanouts[1:], dtype=float) <= MAX_SPAN,
            f"The top level of fanouts {cfg.fanouts} spans more than 2^30 blocks: drop a level.",
        ),
        (
            0 <= blocks <= MAX_BLOCKS,
            f"A history of {blocks} blocks does not fit 31 bits: use a larger first fanout.",
        ),
        (
            len(cfg.costs) == len(cfg.show) == levels + 1,
            f"Give costs and show one value for each level 0 to {levels}.",
        ),
        (cfg.costs[:1] == cfg.fanouts[:1], f"costs[0] must be the first fanout {cfg.fanouts[:1]}."),
        (all(c >= 1 for c in cfg.costs), f"Costs must be at least one entry; got {cfg.costs}."),
        (
            cfg.costs[1:2] < cfg.costs[:1],
            "A gist of level 1 must cost fewer entries than its block: lower costs[1].",
        ),
        (all(cfg.show[:1]), "LOD0 is always shown: set show[0] to True."),
        (
            min(cfg.sink, cfg.recent, cfg.headroom, cfg.max_edits, cfg.hysteresis, cfg.cooldown)
            >= 0,
            "sink, recent, headroom, max_edits, hysteresis and cooldown must not be negative.",
        ),
        (max(cfg.budget, cfg.capacity) <= EXACT, "Budget and capacity must be at most 2^24."),
    ]
    for holds, sentence in wants:
        if not holds:
            raise UserError(sentence)
    entries = int(minimum_budget(cfg, blocks))
    if entries > cfg.budget:
        raise UserError(
            f"Sinks, recent blocks and the coarsest gists of {blocks} blocks cost {entries} "
            f"entries: raise the budget of {cfg.budget}, or add a level, or keep fewer recent."
        )
    nodes = int(coarsest(cfg, blocks)[2].sum()) + cfg.headroom
    if nodes > cfg.capacity:
        raise UserError(
            f"The coarsest layout of {blocks} blocks has {nodes} rows with its headroom: raise "
            f"the capacity of {cfg.capacity}, or add a level."
        )


def initial(cfg: FocusConfig, blocks, dead: Dead = NO_DEAD) -> Layout:
    """The coarsest layout of a history of `blocks` complete blocks (int32, may be traced).

    Sinks and recent blocks are LOD0; the rest is covered by the widest whole nodes that contain
    none of them. `validate` first: nodes past the capacity are cut off.
    """
    run_level, run_index, run_count = coarsest(cfg, blocks)
    ends = jnp.cumsum(run_count)
    row = jnp.arange(cfg.capacity, dtype=jnp.int32)
    run = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(run_level) - 1)
    used = row < ends[-1]
    level = jnp.where(used, jnp.asarray(run_level)[run], 0)
    index = jnp.where(used, run_index[run] + row - (ends - run_count)[run], -1)
    never = jnp.zeros(cfg.capacity, jnp.int32)
    shown = used & is_shown(cfg, dead, level, index)
    return Layout(level, index, shown, never, never, ends[-1])


def append(cfg: FocusConfig, layout: Layout, blocks, now, dead: Dead = NO_DEAD) -> Layout:
    """Adds the newest block as LOD0, shown if it is not dead.

    The block that leaves the recent window stays LOD0 until a refocus collapses it, so the
    result may exceed the budget: `append` (up to `headroom` times) and `refocus` are one unit,
    and nothing reads the layout between the two.

    Args:
      blocks: complete blocks of the history, the new one included.
      now: number of the refocus that follows.
    """
    shown = is_shown(cfg, dead, 0, blocks - 1)
    fields = {"level": 0, "index": blocks - 1, "shown": shown, "born": now, "change": 0}
    rows = {name: getattr(layout, name).at[layout.count].set(v) for name, v in fields.items()}
    return Layout(**rows, count=layout.count + 1)


def entries(cfg: FocusConfig, layout: Layout) -> Entries:
    """The rows that the base reads: tokens of LOD0 nodes and slots of shown gists."""
    ends = jnp.cumsum(entry_cost(cfg, layout))
    slot = jnp.arange(cfg.budget, dtype=jnp.int32)
    valid = slot < ends[-1]
    rank = jnp.where(valid, at_most(ends, cfg.budget), 0)
    begin = ends[rank] - entry_cost(cfg, layout)[rank]
    offset = jnp.where(valid, slot - begin, 0)
    return Entries(layout.level[rank], layout.index[rank], offset, rank, valid)


def check(cfg: FocusConfig, layout: Layout, blocks: int, dead: Dead = NO_DEAD) -> None:
    """Raises LayoutError with the laws that a layout of `blocks` blocks breaks (host only)."""
    count = int(layout.count)
    if not 0 <= count <= cfg.capacity:
        raise LayoutError(f"{count} nodes in {cfg.capacity} rows")
    level, index, shown = (
        np.asarray(a)[:count] for a in (layout.level, layout.index, layout.shown)
    )
    if not np.all((level >= 0) & (level <= cfg.levels)):
        raise LayoutError(f"levels outside 0 to {cfg.levels}: {level}")
    start = index.astype(np.int64) * cfg.spans[level]
    stop = start + cfg.spans[level]
    guarded = (start < cfg.sink) | (stop > blocks - cfg.recent)
    spent = int(np.where(shown, np.asarray(cfg.costs)[level], 0).sum())
    runs = np.stack([dead.start, np.add(dead.start, dead.length, dtype=np.int64)], axis=1)
    laws = {
        "the nodes do not tile the history in time order": np.array_equal(
            np.append(start, blocks), np.append(0, stop)
        ),
        "a sink or recent block is not LOD0": np.all(level[guarded] == 0),
        "a node is not shown as its level says, or dead": np.array_equal(
            shown, np.array(cfg.show)[level] & (live_within(runs, start, stop) > 0)
        ),
        f"{spent} entries exceed the budget of {cfg.budget}": spent <= cfg.budget,
        "rows of the headroom are taken": count <= cfg.capacity - cfg.headroom,
    }
    broken = [law for law, holds in laws.items() if not holds]
    if broken:
        raise LayoutError("; ".join(broken))
