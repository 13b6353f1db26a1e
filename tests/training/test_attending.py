"""What gists learn to keep: where the base looks, and nothing that looks learns of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.focus.bank import BankShape, make_bank, plain_context
from mctx.models import lora
from mctx.models.attention import attention
from mctx.models.base import Rows, rotated
from mctx.models.finder import queries_of
from mctx.models.wrapped import Wrapped, init_part, read_behind
from mctx.training import attending
from tests import tiny

BASES = {
    "plain": tiny.BASE,
    "grouped, normed": dataclasses.replace(tiny.BASE, n_heads=4, n_kv_heads=2, qk_norm=True),
    "without RoPE": dataclasses.replace(tiny.BASE, rope_layers=(True, False)),
}
GIST = dataclasses.replace(tiny.GIST, slots=2, pools="rows")
MODEL = Wrapped(base=tiny.BASE, gist=GIST, window=16)


@functools.cache
def known():
    return {part: tiny.drawn(MODEL, part) for part in ("base", "gistnet")}


@functools.partial(jax.jit, static_argnums=0)
def read_after(model, params, text, after):
    """The bank of a window of text [B, 16], the rows of its tokens, and what is read after it."""
    bank = make_bank(model, params, text)
    rows = Rows(*(x[:, :, :16] for x in bank.rows))
    return bank, rows, read_behind(
        model, params, after, *plain_context(bank.prefix, rows), collect=True
    )


@pytest.mark.parametrize("kind", BASES)
def test_attention_is_what_the_base_itself_pays(kind):
    """Its own attention, of values that tell whose they are, gives every token's shares."""
    model = Wrapped(base=BASES[kind], gist=tiny.GIST, window=16)
    params = {"base": tiny.drawn(model, "base")}
    text = tiny.tokens(2, 16)
    params |= {"gistnet": tiny.drawn(model, "gistnet")}
    bank, rows, tail = read_after(model, params, text, tiny.tokens(2, 5, seed=1))
    found = attending.most_attention(model.base, params["base"], tail, rows, bank.prefix)
    before = plain_context(bank.prefix, rows)[0].rows.k
    keys = jnp.concatenate([before, tail.rows.k], axis=2)
    places = jnp.broadcast_to(jnp.arange(keys.shape[2]), keys.shape[1:3])
    turned, count = rotated(model.base, keys, places), keys.shape[2]
    named = jnp.broadcast_to(jnp.eye(count)[:, None], (2, count, model.base.n_kv_heads, count))
    for layer in range(model.base.n_layers):
        own = jax.tree.map(lambda leaf, at=layer: leaf[at], params["base"]["layers"])
        asked = queries_of(model.base, own, tail.states[layer])
        flat = asked.reshape(*asked.shape[:2], -1, asked.shape[-1])
        flat = rotated(model.base, jnp.stack([flat] * model.base.n_layers), places[:, -5:])[layer]
        wide = ((0, 0), (0, 0), (0, 0), (0, count - flat.shape[-1]))
        scale = (count / flat.shape[-1]) ** 0.5  # attention divides by the root of the width
        shares = attention(
            jnp.pad(flat * scale, wide), jnp.pad(turned[layer], wide), named, implementation="xla"
        )  # [B, T, N, S]
        by_head = shares.reshape(2, 5, model.base.n_kv_heads, -1, count)
        most = by_head.max(axis=(1, 3))[..., len(model.base.prefix) : -5]  # [B, K, R]
        np.testing.assert_allclose(found[:, :, layer], most.transpose(0, 2, 1), atol=1e-5)


@jax.jit
def choice(gistnet, text, tails, base):
    params = {"base": base, "gistnet": gistnet}
    shape = BankShape(GIST, text.shape[1] // GIST.block)
    bank = make_bank(MODEL, params, text)
    return attending.choice(MODEL, shape, params, bank, tails)


@pytest.mark.parametrize("length", [16, 32, 48])  # whole windows; 48 is no whole number of LOD3
def test_texts_side_by_side_are_judged_apart(length):
    """Two copies of a text are as one, whatever stands beside it is as alone."""
    text, tail = tiny.tokens(2, length), tiny.tokens(2, 6, seed=1)
    base, gistnet = known()["base"], known()["gistnet"]
    both = choice(gistnet, text, tail[None], base)
    alone = [choice(gistnet, text[i : i + 1], tail[None, i : i + 1], base) for i in (0, 1)]
    assert min(alone) - 1e-5 <= both <= max(alone) + 1e-5
    twice = choice(gistnet, text[jnp.array([0, 0])], tail[None, jnp.array([0, 0])], base)
    np.testing.assert_allclose(twice, alone[0], atol=1e-5)


def test_it_teaches_gists_and_not_who_looks():
    text, tail = tiny.tokens(2, 32), tiny.tokens(2, 6, seed=1)
    settings = lora.LoraConfig(rank=1, targets=("q", "k"))
    fresh = lora.init(settings, known()["base"], jax.random.key(0))
    drawn = jax.tree.map(lambda x: x + 0.1, fresh)

    def loss(gistnet, own):
        base = lora.tuned({"base": known()["base"], "lora": {"base": own}})["base"]
        return choice(gistnet, text, tail[None], base)

    by_gists, by_lora = jax.jit(jax.grad(loss, argnums=(0, 1)))(known()["gistnet"], drawn)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(by_lora))
    for level in ("lod1", "lod2", "lod3"):
        assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(by_gists[level]["keep"]))


def test_what_is_learned_is_kept():
    """Steps down its gradient make a gist keep the rows from which the continuation takes most."""
    text, tail = tiny.tokens(1, 16), tiny.tokens(1, 6, seed=1)
    params = {"base": known()["base"], "gistnet": init_part(MODEL, "gistnet", jax.random.key(0))}
    shape = BankShape(GIST, 4)
    bank, rows, read = read_after(MODEL, params, text, tail)
    looked = attending.most_attention(MODEL.base, params["base"], read, rows, bank.prefix)
    looked = looked * attending.said_norm(params["base"], rows.v)
    slots, block = GIST.entries[0], GIST.block
    wanted = np.argsort(-np.asarray(looked).reshape(4, block, -1), axis=1)[:, :slots]

    @jax.jit
    def step(gistnet):
        def loss(gistnet):
            return attending.choice(MODEL, shape, {**params, "gistnet": gistnet}, bank, tail[None])

        return jax.tree.map(lambda x, g: x - 1.0 * g, gistnet, jax.grad(loss)(gistnet))

    gistnet = params["gistnet"]
    for _ in range(300):
        gistnet = step(gistnet)
    worth = MODEL.gistnet.apply({"params": gistnet}, 1, bank.states, method="worth")
    chosen = np.argsort(-np.asarray(worth).reshape(4, block, -1), axis=1)[:, :slots]
    hits = np.mean([np.isin(chosen[n, :, h], wanted[n, :, h]).mean()
                    for n in range(4) for h in range(chosen.shape[2])])  # fmt: skip
    assert hits > 0.9


def test_every_continuation_is_judged_where_it_stands():
    """Windows are blind to each other: what follows the first asks as if that were all there is."""
    text, tails = tiny.tokens(1, 32), jnp.stack([tiny.tokens(1, 6, seed=i) for i in (1, 2)])
    base, gistnet = known()["base"], known()["gistnet"]
    both = choice(gistnet, text, tails, base)
    alone = [choice(gistnet, text[:, :end], tail[None], base)
             for end, tail in zip((16, 32), tails, strict=True)]  # fmt: skip
    assert abs(float(alone[0] - alone[1])) > 1e-3
    np.testing.assert_allclose(both, np.mean(alone), rtol=1e-5)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_value_counts_by_what_it_adds_to_the_residual_stream(tuned):
    base = known()["base"]
    merged = base
    if tuned:
        fresh = lora.init(lora.LoraConfig(rank=1, targets=("o",)), base, jax.random.key(0))
        drawn = jax.tree.map(lambda x: x + 0.3, fresh)
        base, merged = lora.graft(base, drawn), lora.merge(base, drawn)
        before = known()["base"]["layers"]["attn"]["o"]["kernel"]
        assert float(jnp.abs(merged["layers"]["attn"]["o"]["kernel"] - before).max()) > 0.05
    out = np.asarray(merged["layers"]["attn"]["o"]["kernel"], np.float32)  # [L, N, H, D]
    layers, n, h, _ = out.shape
    heads = MODEL.base.n_kv_heads
    values = jax.random.normal(jax.random.key(3), (layers, 2, 5, heads, h))
    found = np.asarray(attending.said_norm(base, values))
    each = np.einsum("lbrnh,lnhd->lbrnd", np.repeat(values, n // heads, axis=3), out)
    norms = np.square(np.linalg.norm(each, axis=-1)).reshape(layers, 2, 5, heads, -1)
    wanted = np.sqrt(norms.mean(axis=-1)).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
