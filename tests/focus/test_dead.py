"""Dead blocks keep their place, cost nothing and are not opened; all else stays the law."""

from functools import cache, partial

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.focus import allocator, layout
from mctx.focus.layout import Dead
from mctx.tree.documents import joined_runs, live_within
from tests.focus.test_allocator import LAWFUL, LONGEST, QUICK, utilities

RUNS = 4  # one shape


@cache
def compiled(cfg):
    functions = layout.initial, layout.append, allocator.refocus, layout.live_blocks
    return [jax.jit(partial(f, cfg), compiler_options=QUICK) for f in functions]


def dead_of(edges, blocks):
    """Runs between sorted edges, padded to one shape."""
    edges = np.sort(np.array(edges) % (blocks + 1)).reshape(-1, 2)
    runs = joined_runs(edges)
    padded = np.pad(runs, ((0, RUNS - len(runs)), (0, 0)), constant_values=layout.MAX_BLOCKS)
    return runs, Dead.of(padded)


@settings(max_examples=20)
@given(
    cfg=st.sampled_from(LAWFUL[1:]),
    blocks=st.integers(0, LONGEST),
    edges=st.lists(st.integers(0, LONGEST), min_size=2 * RUNS, max_size=2 * RUNS),
    kinds=st.lists(st.sampled_from(["signed", "heavy", "unwanted"]), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_every_refocus_keeps_the_law_whatever_is_dead(cfg, blocks, edges, kinds, seed):
    initial, append, refocus, live_blocks = compiled(cfg)
    runs, dead = dead_of(edges, blocks)
    rng = np.random.default_rng(seed)
    state = initial(blocks, dead)
    layout.check(cfg, state, blocks, dead)
    for now, kind in enumerate(kinds):
        for _ in range(rng.integers(0, cfg.headroom + 1)):
            if blocks < LONGEST:
                blocks += 1
                state = append(state, blocks, now, dead)
        before = opened(cfg, state, runs)
        state, edits = refocus(state, *utilities(rng, cfg, kind), blocks, now, dead)
        layout.check(cfg, state, blocks, dead)
        assert int(edits.spent) == int(layout.entry_cost(cfg, state).sum())
        assert opened(cfg, state, runs) <= before
        level, index, count = (np.asarray(x) for x in (state.level, state.index, state.count))
        start = index[:count] * cfg.spans[level[:count]]
        want = live_within(runs, start, start + cfg.spans[level[:count]])
        got = np.asarray(live_blocks(dead, state.level, state.index))[:count]
        np.testing.assert_array_equal(got, want)


def opened(cfg, state, runs) -> int:
    """Nodes under a wholly dead one: a dead node is in a layout for a live sibling's sake only."""
    count = int(state.count)
    level, index = (np.asarray(x)[:count].astype(np.int64) for x in (state.level, state.index))
    up = np.minimum(level + 1, cfg.levels)
    above = index // np.where(up > level, cfg.children[up], 1)
    start = above * cfg.spans[up]
    return int(((up > level) & (live_within(runs, start, start + cfg.spans[up]) == 0)).sum())
