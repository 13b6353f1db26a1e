"""The staging view: what it tells a head, and that no view can break a head's layout (law 1)."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.focus import layout
from mctx.focus.layout import FocusConfig
from mctx.focus.staging import best_beneath
from mctx.runtime import focusing
from mctx.runtime.focusing import Scores

# One configuration for both kinds of view: nothing here depends on which is wider.
CFG = FocusConfig(fanouts=(4, 2, 3), sink=1, recent=2, budget=48, capacity=40, max_edits=40)
BLOCKS = 40


def random_view(blocks, seed, rounds=3):
    """A layout that random scores lead to: [1, n]."""
    view, rng = focusing.start(CFG, 1, np.int32(blocks)), np.random.default_rng(seed)
    for now in range(rounds):
        scores = Scores(*rng.normal(size=(2, 1, CFG.capacity)).astype(np.float32))
        view, _ = focusing.edit(CFG, view, scores, np.int32(blocks), np.int32(now))
    return jax.device_get(view)


def first(view):
    return jax.tree.map(lambda x: x[0], view)


def covered(view, row):
    width = CFG.spans[view.level[row]]
    return range(view.index[row] * width, (view.index[row] + 1) * width)


@settings(max_examples=25, derandomize=True)
@given(st.integers(1, BLOCKS), st.integers(0, 2**30))
def test_a_node_is_told_the_best_of_what_is_finer_beneath_it(staged_blocks, seed):
    own = first(random_view(BLOCKS, seed, rounds=1))
    staged = first(random_view(staged_blocks, seed + 1))
    scores = np.random.default_rng(seed).normal(size=CFG.capacity).astype(np.float32)
    told = np.asarray(jax.jit(best_beneath, static_argnums=0)(CFG, own, staged, scores))
    for row in range(own.count):
        inside = [
            scores[s]
            for s in range(staged.count)
            if staged.level[s] < own.level[row]
            and covered(staged, s).start in covered(own, row)
        ]
        assert told[row] == max(inside, default=-np.inf)


@settings(max_examples=25, derandomize=True)
@given(st.integers(1, BLOCKS), st.integers(0, 2**30), st.floats(-1e30, 1e30))
def test_no_view_however_stale_breaks_a_layout(staged_blocks, seed, loud):
    staged = first(random_view(staged_blocks, seed))
    heads, rng = random_view(BLOCKS, seed + 1, rounds=1), np.random.default_rng(seed)
    found = (loud * rng.normal(size=(1, CFG.capacity))).astype(np.float32)
    own = Scores(*rng.normal(size=(2, 1, CFG.capacity)).astype(np.float32))
    for now in range(3):
        scores = focusing.with_staging(CFG, heads, own, staged, found)
        heads, _ = focusing.edit(CFG, heads, scores, np.int32(BLOCKS), np.int32(now))
        layout.check(CFG, first(heads), BLOCKS)
