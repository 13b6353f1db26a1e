"""The suite `lens`: everybody chooses as they do elsewhere, and sees what they may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods import Protocol as Shared
from experiments.methods import Scorer, choosing
from experiments.methods.standing import Asked
from experiments.suites import blocks, lens
from experiments.suites.blocks import Protocol
from mctx.focus.bank import read_history
from mctx.training.labels import gated_utility
from tests import tiny
from tests.experiments import tiny_checkpoint
from tests.experiments.test_eval import segments_of
from tests.experiments.test_score import plain_nll

OPENED = tiny_checkpoint.opened()
SMALL = Protocol(history=16, seen=8, scored=8, blocks=(1, 4))
WIDE = Protocol(history=32, seen=16, scored=8, blocks=(2,))


@functools.cache
def drawn(protocol, count=4):
    return np.asarray(tiny.tokens(count, protocol.length))


def test_rows_agree_where_all_choices_are_the_same():
    tokens = drawn(SMALL, 5)
    found = lens.measure(OPENED, segments_of(tokens), 0, SMALL)
    assert set(found) == {"lens", "lens-gap"}
    told = {(r["view"], r["blocks"], r["what"]): r["value"] for r in found["lens"]}
    assert {what for _, _, what in told} == {"recent", *lens.GUESSES, "full"}
    silent, gists = (f"nll {rest}" for rest in lens.RESTS)
    full = told[silent, 4, "full"]
    for name in lens.GUESSES:  # four of four blocks are all, whoever chooses; no gist is left
        assert told[silent, 4, name] == pytest.approx(full, abs=1e-5)
        assert told[gists, 4, name] == pytest.approx(full, abs=1e-5)
    expected = np.mean([plain_nll(segment)[-8:].mean() for segment in tokens])
    assert full == pytest.approx(expected, abs=1e-4)
    assert told[silent, 1, "recent"] == told[silent, 4, "recent"]
    assert abs(told[silent, 1, "recency"] - full) > 1e-4
    assert abs(told[gists, 1, "recency"] - told[silent, 1, "recency"]) > 1e-4
    gaps = [f"{m} blocks, the rest {rest}" for rest in ("silent", "as gists") for m in (1, 4)]
    assert [row["what"] for row in found["lens-gap"]] == gaps


def test_recovered_is_told_where_full_attention_is_clearly_better():
    none, groups = np.array([3.0, 5.0, 4.0, 6.0], np.float32), np.arange(4)
    full = none - np.array([1.0, 2.0, 1.0, 2.0], np.float32)
    half = none + (full - none) / 2
    nll = {"recent": (none, half), "lens": (half, full), "full": (full, full)}
    told = {(r["view"], r["what"]): r for r in lens._rows(nll, groups, 0, 8)}
    assert told["recovered silent", "lens"]["value"] == pytest.approx(0.5)
    assert told["recovered as gists", "recent"]["value"] == pytest.approx(0.5)
    assert told["recovered as gists", "lens"]["value"] == pytest.approx(1.0)
    assert told["nll silent", "lens"]["value"] == pytest.approx(half.mean())
    assert {r["blocks"] for r in told.values()} == {8}
    nll["full"] = (none + 1e-3 * groups, none)
    views = {r["view"] for r in lens._rows(nll, groups, 0, 8)}
    assert views == {"nll silent", "nll as gists"}


def test_crossfit_scores_no_token_behind_blocks_that_it_chose():
    tokens = drawn(WIDE)
    found = blocks.worths(OPENED, WIDE, tokens)
    told = lens.measure(OPENED, segments_of(tokens), 0, WIDE)["lens"]
    rows = {r["what"]: r for r in told if r["view"] == "nll silent"}
    odd = np.flatnonzero(blocks.scored_places(WIDE)) % 2 == 1
    assert odd.sum() == 4
    expected = 0.0
    for fold, scored in (("odd", ~odd), ("even", odd)):
        chosen = blocks.best(found[fold], 2)[:, None]
        shown = blocks.nodes_shown(WIDE.shape(OPENED.model), chosen, False)
        expected += blocks.nll_behind(OPENED, WIDE, tokens, shown)[:, 0, scored].sum()
    assert rows["hindsight crossfit"]["value"] == pytest.approx(expected / 32, abs=1e-5)
    assert {r for r in rows if rows[r].get("sees_future")} == {"hindsight", "hindsight crossfit"}


def test_hindsight_is_the_label_of_the_scored_tokens_and_folds_are_its_parts():
    tokens = drawn(WIDE)
    found = blocks.worths(OPENED, WIDE, tokens)
    model, params = OPENED.model, OPENED.params

    @jax.jit
    def labels(tokens):
        rows, _, prefix = read_history(model, params, tokens[:, :32])
        every, none = jnp.tile(jnp.arange(8), (4, 1)), jnp.zeros(0, jnp.int32)
        weights = (jnp.arange(23) >= 15).astype(jnp.float32)
        return gated_utility(model, params, rows, prefix, every, none, tokens[:, 32:], weights)

    np.testing.assert_allclose(found["hindsight"], labels(tokens), atol=1e-4)
    assert np.abs(found["odd"] - found["even"]).max() > 1e-4


def test_blocks_are_ranked_as_the_methods_of_that_name_rank_them(monkeypatch):
    for name in ("WORDS", "QUERY_TOKENS"):  # no more than is seen
        monkeypatch.setattr(choosing, name, 16)
    tokens = drawn(WIDE)
    ranks = blocks.unlearned(OPENED.model, WIDE, tokens, blocks.worths(OPENED, WIDE, tokens))
    assert tuple(ranks) == blocks.UNLEARNED
    for at in range(2):
        scorer = Scorer(OPENED, tokens[at, :48], Shared(budget=64, recent=4))
        for name in ("bm25", "cosine", "attention"):
            known = getattr(choosing, name)(scorer, Asked())[:8]
            np.testing.assert_array_equal(np.argsort(ranks[name][at]), np.argsort(known), name)


def test_nobody_but_hindsight_sees_what_is_scored():
    tokens = drawn(WIDE)
    other = tokens.copy()
    other[:, -8:] = 1 + other[:, -8:] % 30
    before, after = (blocks.worths(OPENED, WIDE, x) for x in (tokens, other))
    for name in ("lens", "attention", "query gradient", "means"):
        np.testing.assert_array_equal(before[name], after[name])
    assert np.abs(before["hindsight"] - after["hindsight"]).max() > 1e-4


def test_a_mix_is_chosen_on_other_groups_and_finds_what_is_good_there():
    rng = np.random.default_rng(0)
    labels, groups = rng.normal(size=(6, 9)), np.array([0, 0, 1, 1, 2, 2])
    ranks = {"good": labels + 0.1, "bad": -labels, "noise": rng.normal(size=labels.shape)}
    found = lens.mix(ranks, labels, 2, groups)
    np.testing.assert_array_equal(lens.best(found.worth, 2), lens.best(labels, 2))
    assert found.weights.startswith("good")
    lied = labels.copy()
    lied[:2] *= -100  # of the first group, which is then no longer what the others think
    other = lens.mix(ranks, lied, 2, groups)
    np.testing.assert_allclose(other.worth[:2], found.worth[:2])
    assert np.abs(other.worth[2:] - found.worth[2:]).max() > 0.1


def test_the_gap_is_told_in_pairs_against_the_best_that_learns_nothing():
    base = np.array([3.0, 5.0, 4.0, 6.0])
    nll = {"recency": base, "bm25": base - 0.2, "lens": base - 0.5}
    nll["hindsight crossfit"] = base - 0.8
    row = lens.gap(8, "silent", nll, np.arange(4), 0, "")
    assert row["against"] == "bm25" and row["value"] == pytest.approx(-0.3)
    assert row["low"] == pytest.approx(row["high"])  # what makes a text hard is in no difference
    assert row["gap_closed"] == pytest.approx(0.5)
    nll["hindsight crossfit"] = base - 0.2
    assert "gap_closed" not in lens.gap(8, "silent", nll, np.arange(4), 0, "")


def test_the_best_blocks_are_marked():
    worth = np.array([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]])
    np.testing.assert_array_equal(
        blocks.best(worth, 2), [[True, False, True], [True, False, True]]
    )
