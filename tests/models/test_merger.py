"""Router and merger: which heads are read, and how their hidden states become one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.models.merger import average, merge
from mctx.models.router import STATISTICS, route, static_worth, statistics
from mctx.training.mof import pick
from tests.tiny import BASE, LENS, MODEL, params

H, B, T, D = 3, 2, 4, BASE.d_model


@pytest.fixture(scope="module")
def weigh():
    own = {"params": params()["mof"]["merger"]}
    return jax.jit(lambda hidden, gate: MODEL.merger.apply(own, hidden, gate))


def drawn(seed, heads=H):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(heads, B, T, D)).astype(np.float32)
    return jnp.asarray(hidden), jnp.asarray(rng.normal(size=(B, heads)), jnp.float32)


def test_one_head_through_the_merger_is_that_head(weigh):
    hidden, gate = drawn(0, heads=1)
    np.testing.assert_array_equal(merge(hidden, weigh(hidden, gate)), hidden[0])


def test_heads_that_agree_merge_to_what_they_agree_on(weigh):
    hidden, gate = drawn(1)
    hidden = jnp.broadcast_to(hidden[:1], hidden.shape)
    np.testing.assert_allclose(merge(hidden, weigh(hidden, gate)), hidden[0], atol=1e-6)
    np.testing.assert_allclose(merge(hidden, average(hidden)), hidden[0], atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_weights_are_convex_and_follow_their_heads(weigh, seed):
    hidden, gate = drawn(seed)
    weights = weigh(hidden, gate)
    assert weights.shape == (H, B, T) and weights.min() > 0
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-6)
    order = np.random.default_rng(seed).permutation(H)
    np.testing.assert_allclose(weigh(hidden[order], gate[:, order]), weights[order], atol=1e-5)


def test_the_gate_is_heeded(weigh):
    hidden, gate = drawn(2)
    assert jnp.abs(weigh(hidden, gate) - weigh(hidden, gate[:, ::-1])).max() > 1e-4


def test_merging_keeps_the_dtype():
    hidden = drawn(3)[0].astype(jnp.bfloat16)
    assert merge(hidden, average(hidden)).dtype == jnp.bfloat16


def test_the_best_heads_are_routed_best_first():
    routing = route(jnp.array([[0.1, 0.9, 0.5], [2.0, -1.0, 0.0]]), 2)
    np.testing.assert_array_equal(routing.heads, [[1, 2], [0, 2]])
    np.testing.assert_allclose(routing.gate, [[0.9, 0.5], [2.0, 0.0]])
    np.testing.assert_array_equal(route(static_worth(2, 4), 3).heads, [[0, 1, 2]] * 2)


def test_each_row_of_the_batch_picks_its_own_heads():
    hidden = drawn(4)[0]
    heads = np.array([[2, 0], [1, 2]])
    picked = pick(hidden, jnp.asarray(heads))
    for row in range(B):
        for rank in range(2):
            np.testing.assert_array_equal(picked[rank, row], hidden[heads[row, rank], row])


def test_statistics_of_a_layout():
    score = jnp.array([3.0, -1.0, 2.0, 50.0])
    detailed = jnp.array([True, True, False, True])
    valid = jnp.array([True, True, True, False])
    np.testing.assert_allclose(statistics(score, detailed, valid), [2.0, 3.0, 2.0, 2 / 3])


def test_the_router_sees_query_and_statistics_of_every_head():
    rng = np.random.default_rng(5)
    states = jnp.asarray(rng.normal(size=(BASE.n_layers + 1, B, 5, D)), jnp.float32)
    stats = jnp.asarray(rng.normal(size=(B, LENS.heads, STATISTICS)), jnp.float32)
    own = {"params": params()["mof"]["router"]}
    worth = jax.jit(lambda states, stats: MODEL.router.apply(own, states, stats))
    before = worth(states, stats)
    assert before.shape == (B, LENS.heads)
    assert (jnp.abs(worth(states + 1.0, stats) - before) > 1e-6).all()
    moved = jnp.abs(worth(states, stats.at[:, 1].add(1.0)) - before) > 1e-6
    np.testing.assert_array_equal(moved, [[False, True]] * B)
