"""The suite `descent`: a session's own focus against the same lens on all gists at once."""

import functools

import numpy as np
import pytest

from experiments.methods import Protocol, Scorer, focused
from experiments.sessions import far_detail
from experiments.suites import descent
from experiments.suites.trials import Plan
from mctx.focus import layout
from mctx.focus.layout import FocusConfig
from mctx.models.lensnet import Nodes, utility
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
    """They are what LensNet says of all gists side by side, and of those above them."""
    one = session(scorer)
    worth = descent.of_all(one)
    assert worth.shape == (100,) and np.isneginf(worth[[0, 98, 99]]).all()
    gists = [one.tree.gather(level, np.arange(n)).mean(axis=1) for level, n in ((1, 100), (2, 25))]
    nodes = Nodes(
        gists=np.concatenate(gists)[None],
        level=np.repeat([1, 2], (100, 25))[None],
        distance=np.concatenate([99 - np.arange(100), 96 - 4 * np.arange(25)])[None],
        valid=np.ones((1, 125), bool),
    )
    params = {"params": scorer.params["lensnet"]}
    logs = small.MODEL.lensnet.apply(params, one.query[:, None], nodes, np.zeros((1, 1), int))
    np.testing.assert_allclose(worth[1:98], utility(logs)[0, 0, 1:98], rtol=1e-3, atol=1e-4)
    assert worth[1:98].std() > 1e-2


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


def test_what_is_told_is_of_the_blocks_that_either_way_chooses(scorer, monkeypatch):
    """A session that opens some blocks, by a table, against a lens that wants others."""
    opened, wanted = [7, 20, 21, 50, 64, 77, 90], [7, 20, 22, 40, 64, 77, 97]
    table, of_lens = (
        np.where(np.isin(np.arange(100), some), 1.0, -1.0) for some in (opened, wanted)
    )
    by_table = functools.partial(descent.Session, worths=lambda _: table)
    monkeypatch.setattr(descent, "Session", by_table)
    monkeypatch.setattr(descent, "of_all", lambda _: of_lens)
    needle = ((20 * small.BLOCK, 23 * small.BLOCK), (41 * small.BLOCK - 1, 41 * small.BLOCK))
    found = descent._ask(needle, scorer, "lens")
    assert found["opened"] == 2 / 4 and found["seen"] == 3 / 4  # of 20, 21, 22 and 40
    assert found["levels"] == [0, 0, 1, 3, 0, 0, 1]
    assert found["cover"] == [2, 3, 3, 3, 3, 3, 1]
    assert descent._ask(needle, scorer, "random") is None  # whom nobody asks
