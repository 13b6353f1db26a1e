"""The kernel for one new entry, interpreted: what it reads is what `attention` reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.models import attention, base, flash_decode

MANY = flash_decode.LEAST + flash_decode.TILE + 3  # rows of more than one program


def draw(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def parts_of(rng, lengths, layers, rows, kv_heads, width):
    """The first is shared by all rows, the last is of one layer: a prefix, and the entries."""
    last = len(lengths) - 1
    return [
        tuple(
            draw(rng, 1 if i == last else layers, 1 if i == 0 else rows, n, kv_heads, width)
            for _ in "kv"
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads"), [((1, MANY, 40, 1), 4, 2), ((3, 1), 5, 1), ((2, 64, 1), 2, 2)]
)
def test_it_reads_what_attention_reads(lengths, heads, kv_heads):
    rng = np.random.default_rng(0)
    parts = parts_of(rng, lengths, 2, 2, kv_heads, 16)
    q = draw(rng, 2, heads, 16)
    seen = rng.random((2, sum(lengths))) < 0.5
    seen[:, -1] = True
    bias = jnp.where(seen, draw(rng, *seen.shape), attention.NEGATIVE)  # log-gates too
    for layer in range(2):
        found = flash_decode.attend(q, parts, bias, jnp.int32(layer), interpret=True)
        *behind, own = [
            tuple(jnp.broadcast_to(x[layer % len(x)], (2, *x.shape[2:])) for x in part)
            for part in parts
        ]
        wanted = attention.attention(q[:, None], *own, behind=behind, bias=bias)[:, 0]
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_long_part_is_cut_into_a_bounded_number_of_programs():
    for rows in (1, flash_decode.LEAST, 5000, 131_072, 10_000_001):
        each, count = flash_decode._cut(rows)
        assert count <= flash_decode.MOST and (count - 1) * each < rows <= count * each


def test_shapes_it_does_not_take_are_left_to_xla():
    assert flash_decode.fits(32, 8, 64) and flash_decode.fits(32, 8, 128)
    assert not flash_decode.fits(9, 3, 80)  # no power of two
    assert not flash_decode.fits(64, 2, 64)  # too many queries a key head


@pytest.mark.parametrize("batch", [1, 2])
def test_one_entry_on_a_gpu_reads_as_elsewhere(monkeypatch, batch):
    """Unrolled, with products of several equal rows and the kernel, against the plain path."""
    config = base.BaseConfig(
        vocab_size=64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64,
        rope_layers=(True, False, True),
    )  # fmt: skip
    rng, model = np.random.default_rng(0), base.Base(config, jnp.bfloat16)
    token, position = jnp.array([[3], [5]])[:batch], jnp.array([[50], [61]])[:batch]
    params = model.init(jax.random.key(0), token, position)
    rows = base.Rows(*(draw(rng, 3, batch, 40, 2, 16).astype(jnp.bfloat16) for _ in "kv"))
    bias = jnp.where(rng.random((batch, 40)) < 0.7, 0.0, attention.NEGATIVE)

    def read():
        return model.apply(params, token, position, base.Ready((rows,), bias))

    wanted, calls = read(), []

    def kernel(*args):
        calls.append(args)
        return flash_decode_attend(*args, interpret=True)

    flash_decode_attend = flash_decode.attend
    monkeypatch.setattr(flash_decode, "attend", kernel)
    for module in attention, base:
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_best", lambda *_: "xla")
    found = read()
    assert calls
    close = functools.partial(np.testing.assert_allclose, atol=0.05)
    jax.tree.map(lambda a, b: close(*(x.astype(jnp.float32) for x in (a, b))), found, wanted)
