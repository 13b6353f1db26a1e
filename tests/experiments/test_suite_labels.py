"""The suite `labels`: exact counterfactuals are exact, and what is told of them is told right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pictures
from experiments.suites import blocks, labels
from mctx.focus.bank import context_of, make_bank
from mctx.models.wrapped import tail_nll
from tests import tiny
from tests.experiments import tiny_checkpoint
from tests.experiments.test_eval import segments_of
from tests.experiments.test_score import plain_nll

OPENED = tiny_checkpoint.opened()
SMALL = labels.Single(history=16, seen=8, scored=8, singles=4)


def test_a_single_block_is_worth_what_the_base_says():
    """Of a history of one block, showing it and hiding it are the same, and so are the base's own
    NLL with it and without it."""
    alone = labels.Single(history=4, seen=8, scored=8, singles=1)
    tokens = np.asarray(tiny.tokens(3, alone.length))
    found = labels.counterfactuals(OPENED, alone, tokens, np.arange(1))
    with_it, without = (
        np.array([plain_nll(part)[-8:].sum() for part in some]) for some in (tokens, tokens[:, 4:])
    )
    np.testing.assert_allclose(found["shown"][:, 0], without - with_it, atol=1e-3)
    np.testing.assert_allclose(found["hidden"], found["shown"], atol=1e-3)
    np.testing.assert_allclose(found["collapsed"], found["expanded"], atol=1e-3)
    assert np.abs(found["expanded"] - found["shown"]).max() > 1e-3


def test_an_edit_changes_one_block_of_what_it_says():
    tokens = np.asarray(tiny.tokens(4, SMALL.length))
    found = labels.counterfactuals(OPENED, SMALL, tokens, np.array([1, 3]))
    shapes = {edit: worth.shape for edit, worth in found.items()}
    assert shapes == dict.fromkeys(labels.EDITS, (4, 2))
    shape = SMALL.shape(OPENED.model)
    all_but_last = np.array([[True, True, True, False]])
    collapsed = np.broadcast_to(blocks.nodes_shown(shape, all_but_last, True), (4, 1, 11))
    full = blocks.nll_of_all(OPENED, SMALL, tokens) * SMALL.scored
    worse = blocks.nll_behind(OPENED, SMALL, tokens, collapsed).sum(axis=(1, 2)) - full
    np.testing.assert_allclose(found["collapsed"][:, 1], worse, atol=1e-3)


def test_exchange_is_the_slope_of_swapping_a_gist_for_its_tokens():
    model, params = OPENED.model, OPENED.params
    tokens = np.asarray(tiny.tokens(2, SMALL.length))
    history, _, tail = SMALL.parts(tokens)
    shape, counts = SMALL.shape(model), blocks.scored_places(SMALL)
    bank = jax.jit(functools.partial(make_bank, model))(params, history)
    found = jax.jit(labels.exchange, static_argnums=(0, 2))(
        model, params, SMALL, bank, tail, counts, 0.3
    )
    shown = np.broadcast_to(shape.node_level <= 1, (2, len(shape.node_level)))

    @jax.jit
    def total(step):
        gates = jnp.full((2, 4), 0.3) + step * jnp.eye(4)[1]
        logs = jnp.concatenate([jnp.log(gates), jnp.log1p(-gates), jnp.zeros((2, 3))], axis=1)
        return tail_nll(model, params, tail, *context_of(shape, bank, shown, logs))

    slope = (total(-0.02) - total(0.02))[:, counts].sum(axis=1) / 0.04
    np.testing.assert_allclose(found[:, 1], slope, atol=5e-3)


def test_perfect_foresight_agrees_and_its_opposite_does_not():
    exact = np.random.default_rng(0).normal(size=(4, 30))
    groups = np.arange(4)

    def of(guess, name="lens"):
        rows = labels.agreement(name, "shown", guess, exact, groups, 0)
        return {row["view"]: row["value"] for row in rows}

    assert of(np.sinh(exact)) == pytest.approx(dict(rank=1.0, sign=1.0, weighed=1.0))
    assert of(-exact) == pytest.approx(dict(rank=-1.0, sign=0.0, weighed=0.0))
    helps = of(np.ones(exact.shape), labels.HELPS)
    assert helps["sign"] == pytest.approx((exact > 0).mean()) and "rank" not in helps
    assert set(of(exact, "recency")) == {"rank"}
    assert abs(of(np.random.default_rng(1).normal(size=exact.shape))["rank"]) < 0.3


def test_calibration_holds_every_block_once_and_tells_what_came_true(tmp_path):
    guess = np.random.default_rng(0).normal(size=(4, 30))
    rows = labels.calibration("lens", guess, 2 * guess, np.arange(4), 0)
    by = {(row["what"], row["bin"]): row for row in rows}
    assert sum(row["n"] for row in rows if row["what"] == "predicted") == guess.size
    values = [by["predicted", number]["value"] for number in range(1, labels.BINS + 1)]
    assert values == sorted(values)
    for number, value in enumerate(values, 1):
        assert by["realised", number]["value"] == pytest.approx(2 * value)
    view = labels.VIEWS["calibration"].to_dict()
    pictures.calibration(view, rows, "title", "note", tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_a_bin_of_one_text_has_no_interval(tmp_path):
    guess = np.arange(4)[:, None] * 100.0 + np.arange(16)  # texts apart: two bins of each
    rows = labels.calibration("lens", guess, guess, np.arange(4), 0)
    assert len(rows) == 2 * labels.BINS and not any("low" in row or "high" in row for row in rows)
    view = labels.VIEWS["calibration"].to_dict()
    pictures.calibration(view, rows, "title", "note", tmp_path / "drawn.png")
    alike = labels.calibration("lens", guess, guess, np.zeros(4), 0)
    assert not any("low" in row for row in alike)


def test_measure_tells_every_view_of_every_edit():
    tokens = np.asarray(tiny.tokens(4, SMALL.length))
    rows = labels.measure(OPENED, segments_of(tokens), 0, SMALL)["labels"]
    assert {row["view"] for row in rows} == set(labels.VIEWS)
    assert {row["edit"] for row in rows if row["view"] == "rank"} == set(labels.EDITS)
    assert {row["what"] for row in rows if row["view"] == "rank"} >= {"lens", "gradient", "recency"}
