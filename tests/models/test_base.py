"""The decoder: causality, contexts, padding, losses and shapes."""

import dataclasses
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.models import base as base_file
from mctx.models.attention import NEGATIVE
from mctx.models.base import (
    Base,
    BaseConfig,
    Context,
    Rows,
    count_parameters,
    logits,
    token_divergence,
    token_nll,
)
from mctx.models.hf import abstract_params
from mctx.models.rope import RopeScaling

CONFIG = BaseConfig(
    vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=24
)
ALL_ON = dataclasses.replace(
    CONFIG, qkv_bias=True, qk_norm=True, tied=False, rope_layers=(True, False)
)
T = 6


def make(config=CONFIG, seed=0):
    """Parameters away from their initial values, entries [2, T, D] and positions [2, T]."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: (0.5 + 0.5 * rng.normal(size=leaf.shape)).astype(np.float32),
        abstract_params(config),
    )
    vectors = rng.normal(size=(2, T, config.d_model)).astype(np.float32)
    return params, vectors, np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))


@functools.partial(jax.jit, static_argnums=0, static_argnames="collect")
def apply(config, params, *args, **kwargs):
    return Base(config).apply({"params": params}, *args, **kwargs)


@pytest.mark.parametrize("config", [CONFIG, ALL_ON], ids=["plain", "all on"])
def test_an_entry_depends_on_all_entries_up_to_it_and_on_no_later_one(config):
    params, vectors, positions = make(config)

    @jax.jit
    def influence(vectors):
        """[T, T]: how much entry s moves a number drawn from the hidden state of entry t."""

        def drawn(vectors):
            hidden = Base(config).apply({"params": params}, vectors, positions).hidden
            return hidden[0] @ jnp.cos(jnp.arange(config.d_model))

        return jnp.abs(jax.jacrev(drawn)(vectors)[:, 0]).max(axis=-1)

    moved = np.asarray(influence(vectors))
    assert np.all(moved[np.triu_indices(T, 1)] == 0)
    assert np.all(moved[np.tril_indices(T)] > 0)


def test_tokens_are_read_as_their_embeddings():
    params, _, positions = make()
    tokens = np.random.default_rng(1).integers(0, 32, (2, T))
    by_id = apply(CONFIG, params, tokens, positions).hidden
    by_vector = apply(CONFIG, params, params["embed"]["embedding"][tokens], positions).hidden
    np.testing.assert_allclose(by_id, by_vector, atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, ALL_ON], ids=["plain", "all on"])
def test_rows_of_a_context_stand_for_its_entries_wherever_they_are_put(config):
    params, vectors, positions = make(config)
    spread = positions * 3 + 7
    whole = apply(config, params, vectors, spread)
    # Read elsewhere, the same distances apart, and handed over backwards: rows are unrotated and
    # unordered.
    head = apply(config, params, vectors[:, :4], spread[:, :4] + 100)
    rows = jax.tree.map(lambda x: x[:, :, ::-1], head.rows)
    context = Context(rows, spread[:, 3::-1], np.zeros((2, 4), np.float32))
    rest = apply(config, params, vectors[:, 4:], spread[:, 4:], context)
    np.testing.assert_allclose(rest.hidden, whole.hidden[:, 4:], atol=1e-4)
    for part, all_of_it in zip(rest.rows, whole.rows, strict=True):
        np.testing.assert_allclose(part, all_of_it[:, :, 4:], atol=1e-4)


def test_a_hidden_row_counts_for_nothing():
    params, vectors, positions = make()
    rows = jax.tree.map(np.array, apply(CONFIG, params, vectors[:, :3], positions[:, :3]).rows)
    args = (params, vectors[:, 3:], positions[:, 3:])
    two = Rows(rows.k[:, :, :2], rows.v[:, :, :2])
    gone = Context(two, positions[:, :2], np.zeros((2, 2), np.float32))
    wanted = apply(CONFIG, *args, gone).hidden
    rows.k[:, :, 2], rows.v[:, :, 2] = 5.0, 1e3
    shown = Context(rows, positions[:, :3], np.zeros((2, 3), np.float32))
    hidden = shown._replace(bias=np.float32([[0, 0, NEGATIVE]] * 2))
    np.testing.assert_allclose(apply(CONFIG, *args, hidden).hidden, wanted, atol=1e-5)
    assert np.abs(apply(CONFIG, *args, shown).hidden - wanted).max() > 1e-2


def test_padding_counts_for_nothing():
    params, vectors, positions = make()
    wanted = apply(CONFIG, params, vectors[:, 2:], positions[:, 2:]).hidden
    noise = vectors.copy()
    noise[:, :2] = 50.0
    found = apply(CONFIG, params, noise, positions, valid=positions >= 2).hidden
    np.testing.assert_allclose(found[:, 2:], wanted, atol=1e-5)
    assert np.isfinite(found).all()


def test_states_are_the_residual_stream():
    params, vectors, positions = make()
    read = apply(CONFIG, params, vectors, positions, collect=True)
    assert read.states.shape == (CONFIG.n_layers + 1, 2, T, CONFIG.d_model)
    np.testing.assert_array_equal(read.states[0], vectors)
    last = read.states[-1]
    normed = last / np.sqrt(np.mean(np.square(last), -1, keepdims=True) + CONFIG.norm_eps)
    np.testing.assert_allclose(normed * params["final_norm"]["scale"], read.hidden, rtol=1e-4)
    plain = apply(CONFIG, params, vectors, positions)
    assert plain.states is None
    np.testing.assert_allclose(plain.hidden, read.hidden, atol=1e-6)


def test_rematerialisation_changes_no_gradient():
    params, vectors, positions = make()

    def loss(params, remat):
        read = Base(CONFIG, remat=remat).apply({"params": params}, vectors, positions)
        return jnp.sum(jnp.sin(read.hidden))

    kept, remade = (jax.jit(jax.grad(loss), static_argnums=1)(params, x) for x in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kept, remade)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [4, 256])  # T is a multiple of neither
def test_token_nll_is_the_cross_entropy_of_the_logits(tied, chunk):
    params, hidden, _ = make(dataclasses.replace(CONFIG, tied=tied))
    targets = jnp.asarray(np.random.default_rng(1).integers(0, 32, (2, T)))

    def wanted(params, hidden):
        logprobs = jax.nn.log_softmax(logits(params, hidden))
        return -jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]

    def found(params, hidden):
        return token_nll(params, hidden, targets, chunk)

    def with_gradient(nll):
        def square(*args):
            out = nll(*args)
            return jnp.sum(out**2), out

        return jax.jit(jax.grad(square, argnums=(0, 1), has_aux=True))(params, hidden)

    (d_found, found), (d_wanted, wanted) = with_gradient(found), with_gradient(wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), d_found, d_wanted
    )


@pytest.mark.parametrize("chunk", [4, 256])  # T is a multiple of neither
def test_token_divergence_is_that_of_the_two_predictions(chunk):
    params, hidden, _ = make()
    teacher = jnp.asarray(np.random.default_rng(2).normal(size=hidden.shape), jnp.float32)

    def wanted(hidden):
        own, theirs = (jax.nn.log_softmax(logits(params, x)) for x in (hidden, teacher))
        return jnp.sum(jnp.exp(theirs) * (theirs - own), -1)

    def found(hidden, teacher=teacher):
        return token_divergence(params, hidden, teacher, chunk)

    slope = {f: jax.jit(jax.grad(lambda h, f=f: jnp.sum(f(h) ** 2))) for f in (wanted, found)}
    np.testing.assert_allclose(found(hidden), wanted(hidden), atol=1e-5)
    np.testing.assert_allclose(slope[found](hidden), slope[wanted](hidden), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found(teacher), 0, atol=1e-5)
    of_teacher = jax.grad(lambda t: jnp.sum(found(hidden, t)))(teacher)
    assert not of_teacher.any()


def test_bfloat16_reads_in_bfloat16():
    params, vectors, positions = make()
    read = jax.eval_shape(
        lambda p: Base(CONFIG, dtype=jnp.bfloat16).apply({"params": p}, vectors, positions), params
    )
    assert read.hidden.dtype == read.rows.k.dtype == jnp.bfloat16
    assert jax.eval_shape(logits, params, read.hidden).dtype == jnp.float32


def test_a_config_survives_json():
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    config = dataclasses.replace(ALL_ON, rope_scaling=scaling, prefix=(1, 2))
    assert BaseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert BaseConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    "config, parameters",
    [
        (  # Llama 3 8B
            BaseConfig(128_256, 4096, 32, 32, 8, 128, 14_336, tied=False),
            8_030_261_248,
        ),
        (  # Qwen2.5 0.5B
            BaseConfig(151_936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, tied=True),
            494_032_768,
        ),
        (  # Qwen3 0.6B
            BaseConfig(151_936, 1024, 28, 16, 8, 128, 3072, qk_norm=True, tied=True),
            596_049_920,
        ),
        (  # SmolLM2 135M
            BaseConfig(49_152, 576, 30, 9, 3, 64, 1536, tied=True),
            134_515_008,
        ),
    ],
    ids=["Llama 3 8B", "Qwen2.5 0.5B", "Qwen3 0.6B", "SmolLM2 135M"],
)
def test_published_models_have_their_published_size(config, parameters):
    assert count_parameters(abstract_params(config)) == parameters


def test_the_shapes_of_a_large_model_cost_nothing():
    config = BaseConfig(128_256, 4096, 32, 32, 8, 128, 14_336, tied=False, window=8192)
    start = time.process_time()
    params = abstract_params(config)
    ids = jax.ShapeDtypeStruct((4, 8192), jnp.int32)
    read = jax.eval_shape(Base(config, jnp.bfloat16).apply, {"params": params}, ids, ids)
    assert read.rows.k.shape == (32, 4, 8192, 8, 128)
    assert read.hidden.shape == (4, 8192, 4096)
    assert time.process_time() - start < 5  # memory or layers unrolled would show


def test_an_entry_that_is_read_in_copies_is_read_as_it_is(monkeypatch):
    base, where = Base(ALL_ON), jnp.array([[3]])
    tokens = jnp.array([[5]])
    params = base.init(jax.random.key(0), tokens, where)
    rows = base.apply(params, jnp.array([[7, 8, 9]]), jnp.arange(3)[None]).rows
    context = Context(rows, jnp.arange(3)[None], jnp.zeros((1, 3)))
    wanted = base.apply(params, tokens, where, context, collect=True)
    monkeypatch.setattr(base_file, "platform", lambda: "gpu")
    made = jax.make_jaxpr(lambda: base.apply(params, tokens, where, context, collect=True))()
    assert "optimization_barrier" in str(made)
    found = base.apply(params, tokens, where, context, collect=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, wanted)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)


def test_a_prefix_outside_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="vocabulary of 32 lacks"):
        dataclasses.replace(CONFIG, prefix=(0, 32))
