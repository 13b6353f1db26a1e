"""What a few heads find: shares of attention over blocks, whole or in pieces; what lenses see."""

import dataclasses
import functools
import json

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mctx.errors import UserError
from mctx.focus.bank import BankShape
from mctx.models import finder, lora
from mctx.models.finder import FAINT, KINDS
from mctx.models.lensnet import LensConfig, Nodes
from mctx.models.wrapped import Wrapped, init_part, read_windows
from mctx.training.lens import found_by_node
from tests import tiny

LENS = dataclasses.replace(tiny.LENS, finders=((1, 0), (0, 0)), find_query=4)
MODEL = dataclasses.replace(tiny.MODEL, lens=LENS)
FEATURES = KINDS * 2 * tiny.BASE.n_heads  # two key/value heads, of all query heads each
BLOCK = 4


def drawn(blocks: int, seed: int):
    """Queries [P, Q, G, h] and keys [P, T, h]."""
    rng = np.random.default_rng(seed)
    shape = (2, 4, tiny.BASE.n_heads, 8), (2, blocks * BLOCK, 8)
    return (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shape)


@jax.jit
def at_once(query, keys, live):
    each = finder.attended(query, keys, live)
    shares = finder.log_shares(each, jax.nn.logsumexp(each, axis=-1))
    none = jnp.full(shares.shape[:-1], -jnp.inf)
    return shares, finder.block_features(shares, shares.max(axis=-1), none)


def in_pieces(query, keys, live, size):
    """As a long history is looked over: totals first, then shares, then features."""
    ends = range(0, len(live), size)
    each = [
        finder.attended(query, keys[:, i * BLOCK : (i + size) * BLOCK], live[i : i + size])
        for i in ends
    ]
    total = jnp.full(query.shape[:3], -jnp.inf)
    for piece in each:
        total = jnp.logaddexp(total, jax.nn.logsumexp(piece, axis=-1))
    shares = [finder.log_shares(piece, total) for piece in each]
    best = before = jnp.full(shares[0].shape[:-1], -jnp.inf)
    for piece in shares:
        best = jnp.maximum(best, piece.max(axis=-1))
    found = []
    for piece in shares:
        found.append(finder.block_features(piece, best, before))
        before = piece[..., -1]
    return jnp.concatenate(found)


@settings(max_examples=12)
@given(st.sampled_from((2, 7)), st.integers(0, 99), st.sampled_from((1, 3)), st.data())
def test_a_history_in_pieces_is_the_history_at_once(blocks, seed, size, data):
    query, keys = drawn(blocks, seed)
    live = np.array(data.draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks)))
    shares, found = at_once(query, keys, live)
    assert found.shape == (blocks, FEATURES)
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()
    np.testing.assert_allclose(in_pieces(query, keys, live, size), found, atol=1e-5)

    kinds = np.asarray(found).reshape(blocks, -1, KINDS)
    assert not kinds[~live][:, :, :3].any()  # of what is dead, nothing is found
    logits = np.einsum("pqgh,pth->pgqt", query, keys) * 8**-0.5
    logits = np.where(np.repeat(live, BLOCK), logits, -1e9)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    most = weights.reshape(*logits.shape[:3], blocks, BLOCK).sum(axis=-1).max(axis=2)
    most = most.reshape(-1, blocks).T * live[:, None]  # [n, P·G]
    np.testing.assert_allclose(kinds[..., 2], most, atol=1e-5)
    np.testing.assert_allclose(kinds[1:, :, 3], most[:-1], atol=1e-5)
    if live.any():
        assert np.allclose(kinds[..., 1].max(axis=0), 1, atol=1e-5)


def test_a_key_that_is_a_query_is_found_whatever_else_there_is():
    query, keys = drawn(40, 0)
    keys = keys.at[0, 17 * BLOCK + 2].set(8 * query[0, 3, 1])
    share = np.exp(at_once(query, keys, np.ones(40, bool))[0][0, 1])
    assert share[17] > 0.9 > np.delete(share, 17).max()


def test_queries_are_those_of_the_bases_own_attention_before_rotation():
    """One token that looks at itself, with and without a LoRA beside the projection."""
    tokens = tiny.tokens(1, 1)
    rows, states = jax.jit(lambda params: read_windows(MODEL, params, tokens))(tiny.params())
    base = tiny.params()["base"]
    each = finder.attended(
        finder.looking(MODEL, base, states[:, 0]),
        finder.kept(LENS, rows.k[:, 0]),
        np.ones(1, bool),
    )
    assert each.shape == (2, 1, tiny.BASE.n_heads, 1)
    x = np.asarray(states[:-1, 0, 0])
    scale = np.asarray(base["layers"]["attn_norm"]["scale"])
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + MODEL.base.norm_eps) * scale
    kernel = np.asarray(base["layers"]["attn"]["q"]["kernel"])
    for p, layer in enumerate((1, 0)):
        q = np.einsum("d,dnh->nh", x[layer], kernel[layer])
        logits = q @ np.asarray(rows.k[layer, 0, 0, 0]) * 8**-0.5
        np.testing.assert_allclose(each[p, 0, :, 0], logits, rtol=1e-4)
    shapes = lora.init(lora.LoraConfig(rank=2, targets=("q",)), base, jax.random.key(0))
    own = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(0, 0.3, leaf.shape), shapes)
    merged = lora.merge(base, own)
    grafted = lora.tuned({"base": base, "lora": {"base": own}})["base"]
    looking = jax.jit(lambda base: finder.looking(MODEL, base, states))
    np.testing.assert_allclose(looking(grafted), looking(merged), atol=1e-5)


def test_a_node_is_told_the_best_beneath_it_and_recent_blocks_are_not_found():
    shape = BankShape(MODEL.gist, 8)
    rng = np.random.default_rng(0)
    keys = jnp.asarray(rng.normal(size=(2, 3, 8 * BLOCK + 5, 1, 8)), jnp.float32)
    states = jnp.asarray(rng.normal(size=(3, 3, LENS.query, tiny.BASE.d_model)), jnp.float32)
    base = tiny.params()["base"]
    away = jnp.broadcast_to(jnp.arange(8)[::-1] + 3, (3, 8))
    by_node = jax.jit(lambda *x: found_by_node(MODEL, shape, *x, recent=2))
    found = by_node(base, keys, states, away)
    assert found.shape == (3, len(shape.node_level), FEATURES)
    first, blocks = shape.first_node, np.asarray(found[:, :8])
    np.testing.assert_array_equal(found[:, first[1] : first[2]], blocks)  # LOD1 twins
    pairs = blocks.reshape(3, 4, 2, FEATURES).max(axis=2)
    np.testing.assert_array_equal(found[:, first[2] : first[3]], pairs)
    kinds = blocks.reshape(3, 8, -1, KINDS)
    assert kinds[:, :6, :, 2].all() and not kinds[:, 6:, :, :3].any()
    one = finder.found_in(
        MODEL, base, states[:, 1], keys[:, 1, : 8 * BLOCK], np.arange(8) < 6
    )
    np.testing.assert_allclose(one, blocks[1], atol=1e-6)
    far = np.asarray(by_node(base, keys, states, away * 50)[:, :6]).reshape(3, 6, -1, KINDS)
    assert (far[..., 2] < kinds[:, :6, :, 2]).all()  # each gets less where there is more
    assert (far[..., 1].max(axis=1) == 1).all()


def test_what_is_before_a_history_begins_is_not_looked_at():
    shape = BankShape(MODEL.gist, 8)
    rng = np.random.default_rng(0)
    keys = jnp.asarray(rng.normal(size=(2, 2, 8 * BLOCK, 1, 8)), jnp.float32)
    states = jnp.asarray(rng.normal(size=(3, 2, LENS.query, tiny.BASE.d_model)), jnp.float32)
    away = jnp.broadcast_to(jnp.arange(8)[::-1] * 5, (2, 8))
    of, base = (keys, states, away), tiny.params()["base"]
    by_node = jax.jit(lambda *x: found_by_node(MODEL, shape, *x[:-1], recent=2, first=x[-1]))
    found = by_node(base, *of, np.array([0, 4]))
    np.testing.assert_allclose(found[0], by_node(base, *of, np.array([0, 0]))[0], atol=1e-6)
    kinds = np.asarray(found[1, :8]).reshape(8, -1, KINDS)
    assert not kinds[:4].any() and kinds[4:6, :, 2].all()
    near = keys[:, 1:, 4 * BLOCK :], states[:, 1:], away[1:, 4:]
    alone = jax.jit(
        lambda *x: found_by_node(MODEL, BankShape(MODEL.gist, 4), *x, recent=2)
    )(base, *near)
    np.testing.assert_allclose(found[1, 4:8], alone[0, :4], atol=1e-6)


def test_a_history_over_and_over_is_diluted():
    query, keys = drawn(6, 3)
    keys = keys.at[:, :BLOCK].mul(3)
    each = finder.attended(query, keys, np.ones(6, bool))
    total = finder.diluted(each, jax.nn.logsumexp(each, axis=-1), jnp.float32(9))
    weights = np.exp(np.asarray(each, np.float64))
    best = weights.max(axis=-1)
    np.testing.assert_allclose(total, np.log(best + 9 * (weights.sum(-1) - best)), rtol=1e-4)


def test_a_fresh_lens_says_what_it_would_without_finders():
    key = jax.random.key(0)
    fresh = jax.jit(lambda: init_part(MODEL, "lensnet", key))()
    plain = jax.eval_shape(lambda: init_part(tiny.MODEL, "lensnet", key))
    assert set(fresh) - set(plain) == {"found", "told", "weigh"}
    rng = np.random.default_rng(1)
    ones = jnp.ones((1, 5), jnp.int32)
    nodes = Nodes(
        jnp.asarray(rng.normal(size=(1, 5, 8)), jnp.float32), ones, ones, ones > 0,
        jnp.asarray(rng.uniform(size=(1, 5, FEATURES)), jnp.float32),
    )  # fmt: skip
    states = jnp.asarray(rng.normal(size=(3, 1, LENS.query, tiny.BASE.d_model)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def logs(model, params, nodes):
        return model.lensnet.apply({"params": params}, states, nodes)

    without = logs(tiny.MODEL, {name: fresh[name] for name in plain}, nodes._replace(found=None))
    np.testing.assert_allclose(logs(MODEL, fresh, nodes), without, atol=1e-6)
    trained = tiny.drawn(MODEL, "lensnet")
    nothing = nodes._replace(found=finder.nothing_found(MODEL, (1, 5)))
    known = {name: trained[name] for name in plain}
    np.testing.assert_allclose(
        logs(MODEL, trained, nothing), logs(tiny.MODEL, known, nothing), atol=1e-6
    )
    assert jnp.abs(logs(MODEL, trained, nodes) - logs(MODEL, trained, nothing)).max() > 1e-2


def test_configs_of_lenses_outlive_json_and_old_ones_have_no_finders():
    assert LensConfig.from_dict(json.loads(json.dumps(LENS.to_dict()))) == LENS
    old = {k: v for k, v in tiny.LENS.to_dict().items() if not k.startswith("find")}
    assert LensConfig.from_dict(old) == tiny.LENS and tiny.LENS.finders == ()
    with pytest.raises(UserError, match="no layer 2"):
        Wrapped(base=tiny.BASE, lens=LensConfig(finders=((2, 0),)))
    assert finder.nothing_found(tiny.MODEL, (3,)).shape == (3, 0) and FAINT < 0
