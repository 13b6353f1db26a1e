"""GistNet: whose gist is whose, and law 8 for what it puts into the base."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.focus.bank import complete_gists
from mctx.models.gistnet import MIXES, GistConfig
from mctx.models.wrapped import Wrapped, gist_rows
from tests.tiny import BASE, GIST, MODEL, drawn, params

BLOCKS = 8


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    shape = (BASE.n_layers + 1, 2, BLOCKS * GIST.block, BASE.d_model)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def tree():
    return jax.jit(lambda p, s: MODEL.gistnet.apply({"params": p}, s, method="tree"))


def test_every_level_has_one_gist_for_each_node(states, tree):
    gists = tree(params()["gistnet"], states)
    assert [g.shape for g in gists] == [(2, n, GIST.slots, GIST.width) for n in (8, 4, 2)]


def test_a_gist_is_a_function_of_what_its_node_covers(states, tree):
    before = tree(params()["gistnet"], states)
    block = 5
    touched = states.at[:, 0, block * GIST.block].add(1.0)
    after = tree(params()["gistnet"], touched)
    for level, (a, b) in enumerate(zip(before, after, strict=True), 1):
        changed = np.abs(np.asarray(a - b)).max(axis=(2, 3)) > 1e-6  # [B, nodes]
        expected = np.zeros_like(changed)
        expected[0, block * GIST.block // GIST.span(level)] = True
        np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("mix", MIXES)
def test_a_gist_hears_every_layer_of_the_base(states, mix):
    """And its refinement is part of it, at every level."""
    model = dataclasses.replace(MODEL, gist=dataclasses.replace(GIST, mix=mix, refine=1))
    own = drawn(model, "gistnet")

    def size(own, states):
        return sum(
            jnp.sum(g**2) for g in model.gistnet.apply({"params": own}, states, method="tree")
        )

    by_part, by_state = jax.jit(jax.grad(size, argnums=(0, 1)))(own, states)
    assert (np.abs(by_state).max(axis=(1, 2, 3)) > 0).all()
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(by_part["refine0"]))


def test_children_are_told_apart_by_their_place(states, tree):
    own = tree(params()["gistnet"], states)[0]
    k = GIST.block
    turned = states.reshape(*states.shape[:2], BLOCKS, k, -1)[:, :, :, ::-1].reshape(states.shape)
    assert jnp.abs(own - tree(params()["gistnet"], turned)[0]).max() > 1e-3


def test_each_level_is_trained_as_that_level(states):
    def size(p, level):
        return jnp.sum(MODEL.gistnet.apply({"params": p}, states, method="tree")[level - 1] ** 2)

    grads = jax.jit(jax.grad(size), static_argnums=1)(params()["gistnet"], 2)
    norms = {k: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(v)) for k, v in grads.items()}
    assert norms["lod1"] > 0 and norms["lod2"] > 0 and norms["mix"] > 0
    assert norms["lod3"] == 0 and norms["rows"] == 0


def test_a_history_too_short_for_a_level_has_none_of_its_gists(states):
    short = states[:, :, : GIST.block]
    gists = jax.eval_shape(lambda s: complete_gists(MODEL, params(), s), short)
    assert [g.shape[1] for g in gists] == [1, 0, 0]


@pytest.mark.parametrize("inject", ["kv", "input"])
@pytest.mark.parametrize("slots", [1, 2])
def test_rows_of_a_gist_are_its_own(inject, slots):
    """Law 8: the same gist gives the same rows, whoever stands beside it."""
    gist = dataclasses.replace(GIST, inject=inject, slots=slots)
    model = Wrapped(base=BASE, gist=gist, window=16)
    both = {"base": params()["base"], "gistnet": drawn(model, "gistnet", seed=1)}
    rng = np.random.default_rng(1)
    gists = jnp.asarray(rng.normal(size=(2, 3, slots, gist.width)), jnp.float32)
    make = jax.jit(lambda g: gist_rows(model, both, g))
    rows = make(gists)
    assert rows.k.shape == rows.v.shape == (2, 2, 3 * slots, BASE.n_kv_heads, BASE.head_dim)
    mixed = make(gists[::-1, ::-1])
    for a, b in zip(rows, mixed, strict=True):
        a, b = (x.reshape(2, 2, 3, slots, -1) for x in (a, b))
        np.testing.assert_allclose(a, b[:, ::-1, ::-1], atol=1e-5)
    other = make(gists.at[0, 0].add(1.0))
    moved = np.abs(np.asarray(other.k - rows.k)).reshape(2, 2, 3, -1).max(axis=(0, 3)) > 1e-6
    np.testing.assert_array_equal(moved, [[True, False, False], [False] * 3])


def test_a_config_survives_json():
    assert GistConfig.from_dict(json.loads(json.dumps(GIST.to_dict()))) == GIST


def test_spans_are_products_of_fanouts():
    assert [GIST.span(level) for level in range(4)] == [4, 4, 8, 16]
