"""LensNet: a set function of nodes, each compared with the best m only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.models.lensnet import Nodes, utility
from tests.tiny import BASE, GIST, LENS, MODEL, params

N = 7


@pytest.fixture(scope="module")
def lens():
    return jax.jit(lambda s, nodes: MODEL.lensnet.apply({"params": params()["lensnet"]}, s, nodes))


@pytest.fixture(scope="module")
def query():
    shape = (BASE.n_layers + 1, 2, LENS.query, BASE.d_model)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def nodes():
    rng = np.random.default_rng(1)
    return Nodes(
        gists=jnp.asarray(rng.normal(size=(2, N, GIST.width)), jnp.float32),
        level=jnp.asarray(rng.integers(1, 4, (2, N))),
        distance=jnp.asarray(rng.integers(0, 10_000, (2, N))),
        valid=jnp.ones((2, N), bool),
    )


def test_one_gain_and_one_harm_for_each_head_and_the_staging_context(lens, query, nodes):
    logs = lens(query, nodes)
    assert logs.shape == (2, LENS.heads + 1, N, 2) and logs.dtype == jnp.float32
    heads = utility(logs)
    assert jnp.abs(heads[:, 0] - heads[:, 1]).max() > 1e-3  # heads differ by their adapters


def test_scores_do_not_depend_on_the_order_of_the_nodes(lens, query, nodes):
    order = np.random.default_rng(2).permutation(N)
    moved = lens(query, jax.tree.map(lambda x: x[:, order], nodes))
    np.testing.assert_allclose(moved, lens(query, nodes)[:, :, order], atol=1e-5)


def test_an_invalid_node_is_as_good_as_absent(lens, query, nodes):
    hidden = nodes._replace(valid=nodes.valid.at[:, 2].set(False))
    other = hidden._replace(gists=hidden.gists.at[:, 2].add(3.0))
    rest = np.delete(np.arange(N), 2)
    a, b = lens(query, hidden)[:, :, rest], lens(query, other)[:, :, rest]
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_node_is_compared_with_the_best_m_only(lens, query, nodes):
    """Taking a node away changes the scores of the others exactly if it is among a head's best."""
    before = np.asarray(lens(query, nodes))
    matters = np.zeros((2, LENS.heads + 1, N), bool)
    for gone in range(N):
        valid = nodes.valid.at[:, gone].set(False)
        after = np.asarray(lens(query, nodes._replace(valid=valid)))
        rest = np.delete(np.arange(N), gone)
        moved = np.abs(after - before)[:, :, rest].max(axis=(2, 3))
        matters[:, :, gone] = moved > 1e-5
    np.testing.assert_array_equal(matters.sum(axis=-1), LENS.best)


def test_scores_depend_on_query_gist_level_and_distance(lens, query, nodes):
    before = lens(query, nodes)
    changes = [
        (query + 1.0, nodes),
        (query, nodes._replace(gists=nodes.gists[:, ::-1])),
        (query, nodes._replace(level=4 - nodes.level)),
        (query, nodes._replace(distance=nodes.distance * 4 + 1)),
    ]
    for change in changes:
        assert jnp.abs(lens(*change) - before).max() > 1e-4


def test_levels_deeper_than_it_knows_pass_as_the_deepest(lens, query, nodes):
    deep = nodes._replace(level=jnp.full_like(nodes.level, LENS.max_level))
    deeper = nodes._replace(level=jnp.full_like(nodes.level, LENS.max_level + 5))
    np.testing.assert_array_equal(lens(query, deep), lens(query, deeper))


def test_utility_is_gain_less_harm_and_bounded():
    logs = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]]))
    np.testing.assert_allclose(utility(logs), [2.0, -2.0, 0.0], atol=1e-6)
    assert utility(jnp.array([100.0, 0.0])) < 500
