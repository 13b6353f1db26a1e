"""GistNet: whose gist is whose, and law 8 for what it puts into the base."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.focus.bank import complete_gists
from mctx.models.base import Rows
from mctx.models.gistnet import MIXES, POOLS, GistConfig
from mctx.models.wrapped import Wrapped, gist_rows, init_part, read_windows
from mctx.training.gist import calibrated, principal
from tests.tiny import BASE, GIST, MODEL, drawn, params, tokens

BLOCKS = 8


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    shape = (BASE.n_layers + 1, 2, BLOCKS * GIST.block, BASE.d_model)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    shape = (2, BASE.n_layers, 2, BLOCKS * GIST.block, BASE.n_kv_heads, BASE.head_dim)
    return Rows(*jnp.asarray(rng.normal(size=shape), jnp.float32))


@functools.cache
def kind(pools):
    """A model whose gists are made of states or of rows, its GistNet's parameters, and its trees
    as one compiled function of these."""
    gist = dataclasses.replace(GIST, pools=pools, slots=(2, 4, 2) if pools == "rows" else 1)
    model = dataclasses.replace(MODEL, gist=gist)
    make = jax.jit(lambda p, *read: model.gistnet.apply({"params": p}, *read, method="tree"))
    return model, drawn(model, "gistnet"), make


@pytest.mark.parametrize("pools", POOLS)
def test_every_level_has_one_gist_for_each_node(states, rows, pools):
    model, own, tree = kind(pools)
    gists = tree(own, states, rows)
    counts = zip((8, 4, 2), model.gist.entries, strict=True)
    assert [g.shape for g in gists] == [(2, n, slots, GIST.width) for n, slots in counts]


@pytest.mark.parametrize("pools, what", [("states", "states"), ("rows", "states"), ("rows", "k")])
def test_a_gist_is_a_function_of_what_its_node_covers(states, rows, pools, what):
    _, own, tree = kind(pools)
    before = tree(own, states, rows)
    block = 5

    def touched(x):
        return x.at[:, 0, block * GIST.block].add(1.0)

    changed = {"states": (touched(states), rows), "k": (states, rows._replace(k=touched(rows.k)))}
    after = tree(own, *changed[what])
    for level, (a, b) in enumerate(zip(before, after, strict=True), 1):
        changed = np.abs(np.asarray(a - b)).max(axis=(2, 3)) > 1e-6  # [B, nodes]
        expected = np.zeros_like(changed)
        expected[0, block * GIST.block // GIST.span(level)] = True
        np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("mix", MIXES)
def test_a_gist_hears_every_layer_of_the_base(states, rows, mix):
    """And its refinement is part of it, at every level."""
    model = dataclasses.replace(MODEL, gist=dataclasses.replace(GIST, mix=mix, refine=1))
    own = drawn(model, "gistnet")

    def size(own, states):
        return sum(
            jnp.sum(g**2)
            for g in model.gistnet.apply({"params": own}, states, rows, method="tree")
        )

    by_part, by_state = jax.jit(jax.grad(size, argnums=(0, 1)))(own, states)
    assert (np.abs(by_state).max(axis=(1, 2, 3)) > 0).all()
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(by_part["refine0"]))


@pytest.mark.parametrize("pools", POOLS)
def test_children_are_told_apart_by_their_place(states, rows, pools):
    _, own, tree = kind(pools)

    def turned(x):
        by_block = x.reshape(*x.shape[:2], BLOCKS, GIST.block, -1)
        return by_block[:, :, :, ::-1].reshape(x.shape)

    before = tree(own, states, rows)[0]
    after = tree(own, turned(states), Rows(*map(turned, rows)))[0]
    assert jnp.abs(before - after).max() > 1e-3


def test_each_level_is_trained_as_that_level(states, rows):
    def size(p, level):
        made = MODEL.gistnet.apply({"params": p}, states, rows, method="tree")
        return jnp.sum(made[level - 1] ** 2)

    grads = jax.jit(jax.grad(size), static_argnums=1)(params()["gistnet"], 2)
    norms = {k: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(v)) for k, v in grads.items()}
    assert norms["lod1"] > 0 and norms["lod2"] > 0 and norms["mix"] > 0
    assert norms["lod3"] == 0 and norms["rows"] == 0


def test_a_history_too_short_for_a_level_has_none_of_its_gists(states, rows):
    short = states[:, :, : GIST.block]
    gists = jax.eval_shape(lambda *read: complete_gists(MODEL, params(), *read), short, rows)
    assert [g.shape[1] for g in gists] == [1, 0, 0]


def test_a_fresh_slot_keeps_the_rows_of_the_last_child_of_its_stretch():
    """As wide as rows, a calibrated gist is those rows, in every layer and head."""
    model, own, text, everything = keeping()
    read, states = jax.jit(lambda t: read_windows(model, everything, t))(text)
    apply = functools.partial(model.gistnet.apply, method="blocks")
    gists = jax.jit(apply)({"params": own}, states, read)
    for kept, row in zip(gist_rows(model, {"gistnet": own}, gists), read, strict=True):
        by_block = row.reshape(*row.shape[:2], -1, GIST.block, *row.shape[3:])
        last = by_block[:, :, :, GIST.block // 2 - 1 :: GIST.block // 2]
        np.testing.assert_allclose(kept.reshape(last.shape), last, atol=2e-3)


def test_a_slot_keeps_what_is_worth_most_in_each_layer_and_head():
    model, own, text, everything = keeping()
    children, best = GIST.block, np.array([2, 0])  # of layer 0, of layer 1: kept before the others
    place = np.zeros((children, BASE.n_layers, BASE.n_kv_heads), np.float32)
    place[best, np.arange(BASE.n_layers)] = 2.0
    place[-1] = 1.0
    own = own | {"lod1": own["lod1"] | {"kept_place": jnp.asarray(place)}}
    read, states = jax.jit(lambda t: read_windows(model, everything, t))(text)
    apply = functools.partial(model.gistnet.apply, method="blocks")
    gists = jax.jit(apply)({"params": own}, states, read)
    kept = gist_rows(model, {"gistnet": own}, gists).k
    by_block = read.k.reshape(*read.k.shape[:2], -1, children, *read.k.shape[3:])
    for layer, first in enumerate(best):
        found = kept[layer].reshape(*by_block.shape[1:3], 2, *by_block.shape[4:])
        np.testing.assert_allclose(found[:, :, 0], by_block[layer, :, :, first], atol=2e-3)
        np.testing.assert_allclose(found[:, :, 1], by_block[layer, :, :, -1], atol=2e-3)


@functools.cache
def keeping():
    """A model whose gists are as wide as rows, calibrated parameters, text, and its base."""
    width = 2 * BASE.n_layers * BASE.n_kv_heads * BASE.head_dim
    gist = dataclasses.replace(GIST, pools="rows", slots=2, width=width)
    model = dataclasses.replace(MODEL, gist=gist)
    everything, text = {"base": params()["base"]}, tokens(8, 64)
    fresh = init_part(model, "gistnet", jax.random.key(0))
    return model, calibrated(model, everything, fresh, text), text, everything


def test_a_width_that_heads_cannot_share_is_refused():
    gist = dataclasses.replace(GIST, pools="rows", slots=2, width=GIST.width + 1)
    with pytest.raises(UserError, match="multiple of"):
        init_part(dataclasses.replace(MODEL, gist=gist), "gistnet", jax.random.key(0))


def test_gists_that_keep_rows_enter_as_rows():
    with pytest.raises(UserError, match="inject='kv'"):
        GistConfig(pools="rows", inject="input")


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=20)
def test_principal_directions_hold_all_there_is_to_hold(rank, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 12)), jnp.float32)
    found = principal(x, 8)
    np.testing.assert_allclose(x @ found.T @ found, x, atol=1e-3 * float(jnp.abs(x).max()))
    np.testing.assert_allclose(found @ found.T, np.eye(8), atol=1e-4)


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
