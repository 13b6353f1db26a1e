"""The allocator: law 1 after every call, near the exact optimum, calm when told to be."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.focus import allocator, layout
from mctx.focus.layout import FocusConfig
from tests.focus.exact import density_labels, layout_gain, optimum

YES, NO = True, False
QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of these tests' time


@cache
def compiled(cfg):
    """The jitted `initial`, `append` and `refocus` of one configuration."""
    functions = layout.initial, layout.append, allocator.refocus
    return [jax.jit(partial(f, cfg), compiler_options=QUICK) for f in functions]


def tight(fanouts, longest, spare=0, rows=0, **values):
    """A configuration that just holds every history up to `longest` blocks, plus some spare."""
    wide = FocusConfig(fanouts=fanouts, budget=2**20, capacity=2**20, **values)
    lengths = np.arange(longest + 1)
    budget = int(layout.minimum_budget(wide, lengths).max()) + spare
    nodes = int(layout.coarsest(wide, lengths)[2].sum(0).max())
    capacity = nodes + wide.headroom + rows
    return FocusConfig(fanouts=fanouts, budget=budget, capacity=capacity, **values)


LONGEST = 200
LAWFUL = [
    tight((2, 2, 2, 2, 2), LONGEST, spare=8, rows=12, sink=0, recent=2),
    tight((32, 8, 8), LONGEST, spare=100, rows=40, show=(YES, NO, NO, NO), max_edits=5, cooldown=2),
    tight(
        (3, 2, 4),
        LONGEST,
        sink=2,
        recent=3,
        show=(YES, NO, YES, NO),
        costs=(3, 2, 3, 1),
        headroom=3,
    ),
]


def utilities(rng, cfg, kind):
    """Row utilities of a kind, with no regard to which node a row holds."""
    size = (2, cfg.capacity)
    return {
        "signed": rng.normal(size=size),
        "heavy": rng.exponential(size=size) ** 3,
        "ties": rng.integers(-1, 2, size=size),
        "unwanted": -rng.exponential(size=size),
        "zero": np.zeros(size),
    }[kind].astype(np.float32)


def known(cfg, state, labels):
    """Utilities of a layout's rows and of their parents, from `labels[level][index]`."""
    level, index = np.asarray(state.level), np.asarray(state.index).clip(0)

    def look(level, index):
        rows = [labels[lv] for lv in level]
        inside = [i < len(r) for i, r in zip(index, rows, strict=True)]
        found = [r[i] if ok else 0.0 for i, r, ok in zip(index, rows, inside, strict=True)]
        return np.array(found, np.float32)

    own = look(np.maximum(level, 1), index)
    up = np.minimum(level + 1, cfg.levels)
    return own, np.where(level == 0, own, look(up, index // cfg.children[up]))


def settle(cfg, state, labels, blocks, now=0):
    """Refocuses until nothing changes; returns the layouts passed through."""
    refocus, path = compiled(cfg)[2], [state]
    for _ in range(40):
        state, edits = refocus(state, *known(cfg, state, labels), blocks, now)
        if edits.expanded + edits.collapsed + edits.forced == 0:
            return path
        path.append(state)
    raise AssertionError("no fixed point in 40 calls")


def sizes(cfg, blocks):
    return [blocks // int(span) for span in cfg.spans]


@settings(max_examples=50)
@given(
    cfg=st.sampled_from(LAWFUL),
    blocks=st.integers(0, LONGEST),
    arriving=st.integers(0, 6),
    kinds=st.lists(
        st.sampled_from(["signed", "heavy", "ties", "unwanted", "zero"]), min_size=1, max_size=8
    ),
    seed=st.integers(0, 2**16),
)
def test_every_refocus_keeps_the_law(cfg, blocks, arriving, kinds, seed):
    initial, append, refocus = compiled(cfg)
    rng = np.random.default_rng(seed)
    state = initial(blocks)
    layout.check(cfg, state, blocks)
    for now, kind in enumerate(kinds):
        for _ in range(rng.integers(0, cfg.headroom + 1) if arriving and blocks < LONGEST else 0):
            if blocks < LONGEST:
                blocks += 1
                state = append(state, blocks, now)
        state, edits = refocus(state, *utilities(rng, cfg, kind), blocks, now)
        layout.check(cfg, state, blocks)
        assert int(edits.expanded + edits.collapsed) <= cfg.max_edits
        assert int(edits.spent) == int(layout.entry_cost(cfg, state).sum())


SMALL = FocusConfig(fanouts=(4, 3, 2), recent=1, budget=40, capacity=64)
SMALL_BLOCKS = 26


def test_fixed_points_are_near_the_exact_optimum():
    """True gains are blocks' alone; wider nodes are labelled by the best gain per entry beneath.

    Each case starts where the last one settled, so the layout must be turned over at full budget.
    """
    rng = np.random.default_rng(0)
    count = sizes(SMALL, SMALL_BLOCKS)
    state, reached = compiled(SMALL)[0](SMALL_BLOCKS), []
    for _ in range(200):
        blocks = rng.exponential(size=count[1]) ** rng.integers(1, 4)
        blocks *= rng.random(count[1]) < rng.choice([0.3, 1.0])
        gain = [np.zeros(count[0]), blocks, *(np.zeros(c) for c in count[2:])]
        best = optimum(SMALL, SMALL_BLOCKS, gain)
        state = settle(SMALL, state, density_labels(SMALL, gain), SMALL_BLOCKS)[-1]
        if best > 0:
            reached.append(layout_gain(SMALL, SMALL_BLOCKS, state, gain) / best)
    assert np.mean(reached) >= 0.9, np.mean(reached)
    assert np.min(reached) >= 0.6, np.min(reached)


def test_fixed_utilities_only_ever_gain_and_come_to_rest():
    rng = np.random.default_rng(1)
    state = compiled(SMALL)[0](SMALL_BLOCKS)
    for _ in range(20):
        labels = [rng.normal(size=c) for c in sizes(SMALL, SMALL_BLOCKS)]
        path = settle(SMALL, state, labels, SMALL_BLOCKS)
        gains = [layout_gain(SMALL, SMALL_BLOCKS, step, labels) for step in path]
        assert all(b > a - 1e-5 for a, b in zip(gains, gains[1:], strict=False)), gains
        state = path[-1]


def block_labels(cfg, blocks, values, floor=0.0):
    """Labels of level-1 nodes from a dict; every wider node is worth holding open."""
    labels = [np.full(c, 1e3) for c in sizes(cfg, blocks)]
    labels[1] = np.array([values.get(i, floor) for i in range(blocks)])
    return labels


def as_tokens(state):
    count = int(state.count)
    return set(np.asarray(state.index)[:count][np.asarray(state.level)[:count] == 0].tolist())


# Twelve blocks: sink 0, recent 11; the rest open as gists, one of them as tokens.
CALM = FocusConfig(fanouts=(4, 12), recent=1, budget=22, capacity=32, hysteresis=0.5, cooldown=3)
CALM_BLOCKS = 12


def calm_layout(now=0):
    labels = block_labels(CALM, CALM_BLOCKS, {3: 3.0})
    state = settle(CALM, compiled(CALM)[0](CALM_BLOCKS), labels, CALM_BLOCKS, now)[-1]
    assert as_tokens(state) == {0, 3, 11}
    return state


def test_a_swap_happens_at_full_budget():
    state = calm_layout()
    assert int(layout.entry_cost(CALM, state).sum()) == 8 + 9 + 4 == CALM.budget - 1
    labels = block_labels(CALM, CALM_BLOCKS, {3: 3.0, 7: 9.0})
    state, edits = compiled(CALM)[2](state, *known(CALM, state, labels), CALM_BLOCKS, 10)
    assert as_tokens(state) == {0, 7, 11}
    assert (int(edits.expanded), int(edits.collapsed), int(edits.forced)) == (1, 1, 0)


@pytest.mark.parametrize(("newcomer", "wins"), [(4.4, False), (4.6, True)])
def test_a_newcomer_must_beat_the_hysteresis_per_entry(newcomer, wins):
    state = calm_layout()  # opening a block costs 3 entries: 1.5 nats over the 3.0 that it holds
    labels = block_labels(CALM, CALM_BLOCKS, {3: 3.0, 7: newcomer})
    state, _ = compiled(CALM)[2](state, *known(CALM, state, labels), CALM_BLOCKS, 10)
    assert (7 in as_tokens(state)) == wins


@pytest.mark.parametrize(("utility", "stays"), [(-1.4, True), (-1.6, False)])
def test_unwanted_tokens_close_though_there_is_room(utility, stays):
    state = calm_layout()
    labels = block_labels(CALM, CALM_BLOCKS, {3: utility})
    state, _ = compiled(CALM)[2](state, *known(CALM, state, labels), CALM_BLOCKS, 10)
    assert (3 in as_tokens(state)) == stays


def test_a_change_is_not_undone_during_the_cooldown():
    state, refocus = calm_layout(now=0), compiled(CALM)[2]
    labels = block_labels(CALM, CALM_BLOCKS, {3: 3.0, 7: 9.0})
    for now in range(CALM.cooldown + 1):
        state, _ = refocus(state, *known(CALM, state, labels), CALM_BLOCKS, now)
        assert as_tokens(state) == {0, 3, 11}
    swapped = CALM.cooldown + 1
    state, _ = refocus(state, *known(CALM, state, labels), CALM_BLOCKS, swapped)
    assert as_tokens(state) == {0, 7, 11}
    labels = block_labels(CALM, CALM_BLOCKS, {3: 30.0, 7: -9.0})
    for now in range(swapped, swapped + CALM.cooldown + 1):
        state, _ = refocus(state, *known(CALM, state, labels), CALM_BLOCKS, now)
        assert as_tokens(state) == {0, 7, 11}
    state, _ = refocus(state, *known(CALM, state, labels), CALM_BLOCKS, now + 1)
    assert as_tokens(state) == {0, 3, 11}


# Silent gists, no edits allowed: whatever happens is forced. Room for two far blocks.
FROZEN = FocusConfig(
    fanouts=(4, 4, 2), show=(YES, NO, NO, NO), recent=2, budget=20, capacity=48, max_edits=0
)


def test_forced_collapses_take_the_cheapest_tokens_and_no_silent_set():
    initial, append, refocus = compiled(FROZEN)
    values = dict.fromkeys(range(4, 8), 0.1) | {1: 5.0, 2: 1.0, 3: 4.0}
    state, closed = initial(3), []
    for blocks in range(4, 13):
        state = append(state, blocks, blocks)
        labels = block_labels(FROZEN, blocks, values, floor=2.0)
        # Closing the silent gists of blocks 4 to 7 costs least of all, but frees no entries.
        labels[2:] = [np.zeros(len(wide)) for wide in labels[2:]]
        before = as_tokens(state)
        state, edits = refocus(state, *known(FROZEN, state, labels), blocks, blocks)
        layout.check(FROZEN, state, blocks)
        assert int(edits.expanded + edits.collapsed) == 0
        closed.append(sorted(before - as_tokens(state)))
    assert closed == [[], [], [2], [4], [5], [6], [7], [8], [9]]
    assert max(state.level.tolist()) == 1


def test_heads_are_independent_layouts():
    cfg = LAWFUL[0]
    initial, _, refocus = compiled(cfg)
    rng = np.random.default_rng(2)
    scores = [utilities(rng, cfg, kind) for kind in ("signed", "heavy", "unwanted")]
    looped = vmapped = [initial(60)] * 3
    stack = partial(jax.tree.map, lambda *a: jnp.stack(a))
    vmapped = stack(*vmapped)
    together = jax.jit(
        jax.vmap(partial(allocator.refocus, cfg), in_axes=(0, 0, 0, None, None)),
        compiler_options=QUICK,
    )
    own, above = (np.stack([s[i] for s in scores]) for i in range(2))
    for now in range(3):
        looped = [refocus(s, *score, 60, now)[0] for s, score in zip(looped, scores, strict=True)]
        vmapped, _ = together(vmapped, own, above, 60, now)
    jax.tree.map(np.testing.assert_array_equal, stack(*looped), vmapped)


def test_streaming_compiles_once_through_level_births():
    cfg = LAWFUL[0]
    initial, append, refocus = compiled(cfg)
    rng, state, births = np.random.default_rng(3), initial(0), []
    for blocks in range(1, LONGEST + 1):
        state = append(state, blocks, blocks)
        state, _ = refocus(state, *utilities(rng, cfg, "signed"), blocks, blocks)
        layout.check(cfg, state, blocks)
        births += sorted({int(level) for level in state.level.tolist()} - set(births))
    assert births == [0, 1, 2, 3, 4, 5]
    assert append._cache_size() == refocus._cache_size() == 1


def test_price_counts_rows_where_children_are_silent():
    shown = FocusConfig(fanouts=(32, 8), budget=1024, capacity=512)
    silent = FocusConfig(fanouts=(32, 8), budget=1024, capacity=512, show=(YES, NO, NO))
    assert allocator.price(shown).tolist() == [1, 31, 14]
    assert allocator.price(silent).tolist() == [1, 32, 14]
