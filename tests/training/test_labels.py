"""Gated-gradient labels against finite differences, and what they may not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.focus.bank import BankShape, context_of, make_bank, read_history
from mctx.models.base import Rows
from mctx.models.wrapped import tail_nll
from mctx.training.labels import EPSILON, gated_utility, label_history
from tests.tiny import GIST, MODEL, params, tokens

B, BLOCKS, RECENT, TAIL = 2, 8, 2, 6
SHAPE = BankShape(GIST, BLOCKS)
HISTORY = tokens(B, BLOCKS * GIST.block)
CONTINUATION = tokens(B, TAIL + 1, seed=1)
CANDIDATES = jnp.array([[0, 2, 3], [1, 4, 5]])
LAST = jnp.arange(BLOCKS - RECENT, BLOCKS)


@pytest.fixture(scope="module")
def history():
    """(rows, prefix)."""
    rows, _, prefix = jax.jit(lambda t: read_history(MODEL, params(), t))(HISTORY)
    return rows, prefix


@pytest.fixture(scope="module")
def label():
    def run(rows, prefix, candidates, tail, weights):
        return gated_utility(MODEL, params(), rows, prefix, candidates, LAST, tail, weights)

    return jax.jit(run)


EVEN = jnp.ones(TAIL)


def test_utility_is_the_slope_of_the_nll_in_the_gate(history, label):
    """Finite differences through a bank's masks and log-gates, another path to the same NLL."""
    got = label(*history, CANDIDATES, CONTINUATION, EVEN)
    bank = jax.jit(lambda t: make_bank(MODEL, params(), t))(HISTORY)
    row = np.arange(B)[:, None]
    shown = np.zeros((B, len(SHAPE.node_level)), bool)
    shown[row, CANDIDATES] = True
    shown[:, LAST] = True

    @jax.jit
    def nll(gates):  # [B, N]
        context, start = context_of(SHAPE, bank, jnp.asarray(shown), jnp.log(gates))
        return tail_nll(MODEL, params(), CONTINUATION, context, start).sum(axis=1)

    start = np.ones(shown.shape, np.float32)
    start[row, CANDIDATES] = EPSILON
    step = 0.005
    for column in range(CANDIDATES.shape[1]):
        up, down = start.copy(), start.copy()
        up[np.arange(B), CANDIDATES[:, column]] += step
        down[np.arange(B), CANDIDATES[:, column]] -= step
        slope = (nll(up) - nll(down)) / (2 * step)
        np.testing.assert_allclose(got[:, column], -slope, rtol=0.03, atol=3e-3)
    assert np.abs(got).max() > 0.02  # the comparison is not one of noise


def test_blocks_that_are_not_shown_do_not_matter(history, label):
    rows, prefix = history
    before = label(rows, prefix, CANDIDATES, CONTINUATION, EVEN)
    hidden = np.ones((B, BLOCKS), bool)
    hidden[np.arange(B)[:, None], CANDIDATES] = False
    hidden[:, LAST] = False
    mask = np.repeat(hidden, GIST.block, axis=1)[None, :, :, None, None]
    noisy = Rows(*(jnp.where(mask, 9.0, x) for x in rows))
    np.testing.assert_array_equal(
        before, label(noisy, prefix, CANDIDATES, CONTINUATION, EVEN)
    )
    other = Rows(*(x.at[:, :, -1].add(1.0) for x in rows))  # a recent one does
    assert jnp.abs(before - label(other, prefix, CANDIDATES, CONTINUATION, EVEN)).max() > 1e-4


def test_weights_choose_the_tokens_that_count(history, label):
    """Only the first half counts: what comes after it changes nothing."""
    half = (jnp.arange(TAIL) < TAIL // 2).astype(jnp.float32)
    changed = CONTINUATION.at[:, TAIL // 2 + 1 :].set(1)
    args = (*history, CANDIDATES)
    np.testing.assert_allclose(
        label(*args, CONTINUATION, half), label(*args, changed, half), atol=1e-6
    )
    both = label(*args, CONTINUATION, half) + label(*args, CONTINUATION, 1 - half)
    np.testing.assert_allclose(both, label(*args, CONTINUATION, EVEN), atol=1e-5)


def test_a_history_is_labelled_in_sets(history, label):
    """Each block's label is that of the set it was dealt into."""
    rows, prefix = history

    def run(sets, key):
        return label_history(MODEL, params(), rows, prefix, CONTINUATION, RECENT, sets, key)

    several = jax.jit(run, static_argnums=0)(3, jax.random.key(0))
    assert several.shape == (B, BLOCKS - RECENT)
    # Every pair that could be block 0's set is tried: one gives its label in each row.
    tried = [
        label(rows, prefix, jnp.array([[0, other]] * B), CONTINUATION, EVEN)[:, 0]
        for other in range(1, BLOCKS - RECENT)
    ]
    assert np.isclose(tried, several[:, 0], atol=1e-5).any(axis=0).all()
    assert np.ptp(tried, axis=0).min() > 1e-3
    with pytest.raises(ValueError, match="6 candidate blocks .* 4"):
        run(4, jax.random.key(0))
