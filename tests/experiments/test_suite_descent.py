"""The suite `descent`: a session's own focus against the same lens on all gists at once."""

import numpy as np
import pytest

from experiments.methods import Protocol, Scorer, focused
from experiments.sessions import far_detail
from experiments.suites import descent
from experiments.suites.trials import Plan
from mctx.focus import layout
from mctx.focus.layout import FocusConfig
from tests.runtime import small

PROTOCOL = Protocol(budget=40, recent=2, sink=1)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(small.opened(), small.text(100 * small.BLOCK), PROTOCOL, small.reader())


def session(scorer, **how):
    config = focused.roomy(scorer, focused.tokens_config(scorer.model, PROTOCOL))
    return small.session(config, scorer.history.tree, **how)


def test_a_descent_that_sees_all_opens_what_scoring_all_would_choose(scorer):
    """Under a table, a coarse node says the best beneath it: nothing wanted can be missed."""
    wanted = np.array([7, 20, 21, 50, 64, 77, 90])
    table = np.where(np.isin(np.arange(100), wanted), 1.0, -1.0)
    one = session(scorer, worths=lambda _: table)
    np.testing.assert_array_equal(far_detail(one), wanted)
    assert descent.levels_of(one, wanted) == [0] * 7
    levels = dict(zip(range(100), descent.levels_of(one, np.arange(100)), strict=True))
    assert levels[22] == levels[23] == 1  # siblings of what was opened
    assert levels[24] == levels[27] == 2 and levels[32] == 3


@pytest.mark.parametrize("blocks", [1, 3, 7, 22, 100])
def test_the_cover_is_what_a_session_starts_with(blocks):
    focus = FocusConfig(fanouts=(4, 4, 4, 4), sink=1, recent=2, capacity=64)
    one = layout.initial(focus, blocks)
    rows = slice(0, int(one.count))
    expected = np.repeat(one.level[rows], focus.spans[one.level[rows]])
    np.testing.assert_array_equal(descent.cover_of(focus, blocks), expected)


def test_scores_of_all_blocks_are_the_lens_s_own(scorer):
    """Where the layout holds all gists side by side, they are what a refocus would look at."""
    one = session(scorer)
    worth = descent.of_all(one)
    assert worth.shape == (100,) and np.isneginf(worth[[0, 98, 99]]).all()
    assert np.isfinite(worth[1:98]).all() and worth[1:98].std() > 0


def test_misses_are_told_by_level_of_those_that_came_so_far():
    plan = Plan(small.opened(), small.reader(), PROTOCOL, ("lens",), (64,))
    records = [
        dict(defined=True, length=64, levels=levels, cover=cover, opened=share, seen=1.0)
        for levels, cover, share in (
            ([0, 0, 1, 2], [3, 1, 2, 2], 1.0), ([0, 1, 3, 3], [2, 1, 3, 3], 0.5)
        )
    ]  # fmt: skip
    found = descent.rows(records, plan)
    by = {(r["view"], r["what"], r.get("level")): r["value"] for r in found}
    assert by["missed", "descent", 1] == pytest.approx(2 / 5)
    assert by["missed", "descent", 2] == pytest.approx(1 / 4)  # two came from level 1 at best
    assert by["missed", "descent", 3] == pytest.approx(2 / 3)
    assert by["opened", "descent", None] == pytest.approx(3 / 8)
    assert by["needle", "descent", None] == 0.5 and by["needle", "all gists at once", None] == 1.0


def test_only_the_lens_is_asked(scorer):
    assert descent._ask(((8, 12),), scorer, "random") is None
    found = descent._ask(((8, 12),), scorer, "lens")
    assert found["opened"] in (0, 1) and found["seen"] in (0, 1) and len(found["levels"]) > 0
