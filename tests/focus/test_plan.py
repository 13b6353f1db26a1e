"""Known gains: near the exact optimum in one refocus, and the laws of any refocus."""

from functools import cache, partial

import jax
import numpy as np

from experiments.bench.allocator import Cases, families, shares, utility
from experiments.bench.optimum import optimum
from mctx.focus import layout
from mctx.focus.layout import FocusConfig
from mctx.focus.plan import refocus_known, sizes
from tests.focus import exact
from tests.focus.test_allocator import QUICK

NUMBER = 150


def test_one_refocus_is_near_the_exact_optimum():
    """A twin of `bench allocator`, of the shape whose budget leaves room for the fewest edits."""
    cases = next(families(NUMBER, seed=1))
    reached = shares(cases, compiler_options=QUICK)
    assert reached.max() <= 1 + 1e-5
    assert np.mean(reached) >= 0.98, np.mean(reached)
    assert np.min(reached) >= 0.9, np.min(reached)


def test_the_two_optima_agree():
    cases = next(families(20, seed=2))
    some = [
        exact.optimum(cases.cfg, cases.blocks, [None, *(g[i] for g in cases.gains)])
        for i in range(20)
    ]
    np.testing.assert_allclose(optimum(*cases), some, atol=1e-9)


BLOCKS = 40
CFG = FocusConfig(
    fanouts=(4, 2, 3), recent=2, budget=60, capacity=41, max_edits=5, hysteresis=0.1, cooldown=2
)


@cache
def compiled():
    return jax.jit(partial(refocus_known, CFG), compiler_options=QUICK)


def gains(rng):
    count = sizes(CFG, BLOCKS)[1:]
    means = 1.0, -1.0, -1.0
    return [rng.normal(m, 2.0, n).astype(np.float32) for m, n in zip(means, count, strict=True)]


def test_laws_and_caps_hold_as_blocks_are_appended_and_gains_change():
    rng, blocks = np.random.default_rng(0), 30
    state = layout.initial(CFG, blocks)
    for now in range(1, 16):
        if blocks < BLOCKS:
            blocks += 1
            state = layout.append(CFG, state, blocks, now)
        state, edits = compiled()(state, gains(rng), blocks, now)
        layout.check(CFG, state, blocks)
        assert 0 <= int(edits.expanded + edits.collapsed) <= CFG.max_edits
        assert int(edits.spent) == int(layout.entry_cost(CFG, state).sum())


def test_capped_edits_come_to_rest_near_the_optimum():
    known = gains(np.random.default_rng(3))
    state = layout.initial(CFG, BLOCKS)
    for refocuses in range(1, 41):
        state, edits = compiled()(state, known, BLOCKS, 10 * refocuses)
        if edits.expanded + edits.collapsed == 0:
            break
    assert 3 < refocuses < 40  # the cap was felt, and there is rest
    whole = [g[None, : BLOCKS // int(s)] for g, s in zip(known, CFG.spans[1:], strict=True)]
    cases = Cases(CFG, BLOCKS, whole)
    gained = utility(cases, jax.tree.map(lambda x: x[None], state))
    assert gained >= 0.9 * optimum(*cases)
