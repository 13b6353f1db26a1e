"""The suite `robustness`: what is done to a lens is what it says, and nothing else."""

import numpy as np
import pytest

from experiments.suites import robustness
from experiments.suites.blocks import best
from tests import tiny
from tests.experiments import tiny_checkpoint
from tests.experiments.test_eval import segments_of

OPENED = tiny_checkpoint.opened()
SMALL = robustness.Harm(history=32, seen=16, scored=8, chosen=2, noise=(0.0, 2.0), planted=(1, 2))
SHAPE = SMALL.shape(OPENED.model)


def test_shuffled_gists_stay_in_their_level_and_move():
    order = robustness.shuffled(SHAPE, 3, np.random.default_rng(0))
    for row in order:
        np.testing.assert_array_equal(np.sort(row), np.arange(len(row)))
        np.testing.assert_array_equal(SHAPE.node_level[row], SHAPE.node_level)
    assert (order != robustness.unmoved(SHAPE, 3)).mean() > 0.3


def test_a_node_is_scored_with_the_gist_it_is_given():
    """Between two nodes of one level, the lens's opinion moves with the gist, but for distance."""
    tokens = np.asarray(tiny.tokens(4, SMALL.length))
    own = robustness.unmoved(SHAPE, 4)
    order = robustness.shuffled(SHAPE, 4, np.random.default_rng(1))
    before, after = (robustness.scores(OPENED, SMALL, tokens, some) for some in (own, order))
    assert before.shape == (4, 8) and np.abs(before - after).max() > 1e-4
    np.testing.assert_array_equal(before, robustness.scores(OPENED, SMALL, tokens, own))


def test_look_alikes_are_planted_in_the_history_and_nowhere_else():
    tokens = np.asarray(tiny.tokens(3, SMALL.length))
    where = best(np.random.default_rng(0).uniform(size=(3, 8)), 2)
    changed = robustness.planted(SMALL, SHAPE, tokens, where)
    np.testing.assert_array_equal(changed[:, 32:], tokens[:, 32:])
    blocks, before = (x[:, :32].reshape(3, 8, 4) for x in (changed, tokens))
    np.testing.assert_array_equal(blocks[~where], before[~where])
    np.testing.assert_array_equal(blocks[where], np.repeat(tokens[:, 44:48], 2, axis=0))


def test_every_way_is_told_beside_recency_on_the_same_text(monkeypatch):
    read, nll_behind = [], robustness.nll_behind
    monkeypatch.setattr(
        robustness, "nll_behind", lambda *given: read.append(given[2]) or nll_behind(*given)
    )
    tokens = np.asarray(tiny.tokens(4, SMALL.length))
    rows = robustness.measure(OPENED, segments_of(tokens), 0, SMALL)["robustness"]
    by = {(r["view"], r["what"], r.get("noise", r.get("case"))): r["value"] for r in rows}
    cases = ["as it is", "gists shuffled", "1 look-alike planted", "2 look-alikes planted"]
    assert [c for v, w, c in by if (v, w) == ("harm_delta", "lens")] == cases
    assert by["noise_delta", "lens", 0.0] == pytest.approx(by["harm_delta", "lens", "as it is"])
    assert by["noise_delta", "lens", 2.0] != by["noise_delta", "lens", 0.0]
    assert by["noise_delta", "random", 0.0] == pytest.approx(by["noise_delta", "random", 2.0])
    assert ("harm_delta", "recency", "as it is") not in by  # it is what all is measured against
    assert len(read) == 3 and read[0] is tokens  # as it is, and with either number planted


def test_taken_are_the_planted_blocks_that_somebody_chooses(monkeypatch):
    """A table that knows copies of what is read takes them all, recency those among the last."""
    where, planted = [], robustness.planted

    def copies(opened, protocol, tokens, order):
        blocks = tokens[:, :32].reshape(len(tokens), 8, 4)
        return (blocks == tokens[:, None, 44:48]).all(axis=-1).astype(float)

    def seen(*given):
        where.append(given[-1])
        return planted(*given)

    monkeypatch.setattr(robustness, "scores", copies)
    monkeypatch.setattr(robustness, "planted", seen)
    tokens = np.asarray(tiny.tokens(4, SMALL.length))
    rows = robustness.measure(OPENED, segments_of(tokens), 0, SMALL)["robustness"]
    taken = {(r["what"], r["case"]): r["value"] for r in rows if r["view"] == "taken"}
    assert len(taken) == 6
    for case, mask in zip(("1 look-alike planted", "2 look-alikes planted"), where, strict=True):
        assert taken["lens", case] == 1
        assert taken["recency", case] == pytest.approx(mask[:, -2:].sum() / mask.sum())
    assert 0 < taken["recency", case] < 1  # of eight that are planted, some are among the last
