"""Every backend computes the same attention, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice

from mctx import sharding
from mctx.models.attention import NEGATIVE, _best, attention


def reference(q, k, v, bias=None, causal=True):
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias[:, None, None, :]
    t, s = scores.shape[-2:]
    if causal:
        scores = jnp.where(jnp.tri(t, s, s - t, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v)


def draw(t, s, heads=4, kv_heads=2, width=8, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, t, heads, width), (2, s, kv_heads, width), (2, s, kv_heads, width)]
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def with_gradients(function, *args):
    """The output, and the gradient of a sum that weighs every number of it differently."""

    def weighted(args):
        out = function(*args).astype(jnp.float32)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    gradients, out = jax.jit(jax.grad(weighted, has_aux=True))(args)
    return out, *gradients


def assert_same(found, wanted, atol):
    for name, a, b in zip(("out", "q", "k", "v", "bias"), found, wanted, strict=False):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "t, s, causal, kv_heads", [(6, 6, True, 2), (3, 8, True, 1), (1, 5, True, 4), (5, 7, False, 2)]
)
def test_xla_equals_the_formula(t, s, causal, kv_heads):
    q, k, v = draw(t, s, kv_heads=kv_heads)
    bias = np.random.default_rng(1).normal(size=(2, s)).astype(np.float32)

    def ours(q, k, v, bias):
        return attention(q, k, v, bias=bias, causal=causal, implementation="xla")

    wanted = with_gradients(lambda *args: reference(*args, causal=causal), q, k, v, bias)
    assert_same(with_gradients(ours, q, k, v, bias), wanted, atol=1e-5)


def test_keys_that_stand_in_parts_are_read_like_joined_ones():
    q, k, v = draw(3, 9)
    k[1, :2], v[1, :2] = k[0, :2], v[0, :2]  # the first part is everybody's
    bias = np.where(np.arange(9) % 4 == 2, NEGATIVE, 0.0) * np.ones((2, 1))
    parts = (k[:1, :2], v[:1, :2]), (k[:, 2:2], v[:, 2:2]), (k[:, 2:6], v[:, 2:6])
    got = attention(q, k[:, 6:], v[:, 6:], behind=parts, bias=bias)
    np.testing.assert_allclose(got, reference(q, k, v, bias), atol=1e-5)


def test_no_bias_is_a_bias_of_zero():
    q, k, v = draw(4, 7)
    zero = attention(q, k, v, bias=np.zeros((2, 7), np.float32))
    np.testing.assert_allclose(attention(q, k, v), zero, atol=1e-6)


def test_a_hidden_key_is_as_good_as_absent():
    q, k, v = draw(3, 8)
    hidden = np.zeros((2, 8), np.float32)
    hidden[:, (1, 4)] = NEGATIVE  # before the queries' own keys
    kept = np.array([0, 2, 3, 5, 6, 7])
    wanted = with_gradients(attention, q, k[:, kept], v[:, kept])
    found = with_gradients(lambda q, k, v: attention(q, k, v, bias=hidden), q, k, v)
    out, d_q, d_k, d_v = (np.asarray(x) for x in found)
    assert_same((out, d_q, d_k[:, kept], d_v[:, kept]), wanted, atol=1e-5)
    assert not np.any(d_k[:, (1, 4)]) and not np.any(d_v[:, (1, 4)])


def test_a_query_that_reads_nothing_is_finite():
    q, k, v = draw(4, 4)
    bias = np.full((2, 4), NEGATIVE, np.float32)
    found = with_gradients(lambda q, k, v: attention(q, k, v, bias=bias), q, k, v)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize(("kv_heads", "length", "devices"), [(1, 128, 1), (4, 100, 2)])
def test_splash_equals_xla(kv_heads, length, devices):
    """Also padded to the kernel's block, and on each device's own rows."""
    q, k, v = draw(length, length, kv_heads=kv_heads, width=16)
    with jax.set_mesh(sharding.mesh(data=devices)):
        found, wanted = (
            with_gradients(lambda *args: attention(*args, implementation=name), q, k, v)  # noqa: B023
            for name in ("splash", "xla")
        )
    assert_same(found, wanted, atol=2e-5)


def test_the_backend_is_that_of_the_mesh_if_it_can_split_the_batch():
    tpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    for devices, chosen in ((2, "splash"), (4, "xla")):
        mesh = sharding.mesh(data=devices).abstract_mesh.update(abstract_device=tpu)
        with jax.sharding.use_abstract_mesh(mesh):
            assert _best(*draw(128, 128)[:2], None, True) == chosen


def _has_gpu_for_cudnn():
    try:
        return float(jax.devices("gpu")[0].compute_capability) >= 8.0  # bfloat16 from Ampere on
    except RuntimeError:
        return False


@pytest.mark.skipif(not _has_gpu_for_cudnn(), reason="needs an NVIDIA GPU with bfloat16")
@pytest.mark.parametrize(("kv_heads", "length"), [(1, 128), (4, 128), (2, 33), (2, 513)])
def test_cudnn_equals_xla(kv_heads, length):
    q, k, v = draw(length, length, kv_heads=kv_heads, width=64, dtype=jnp.bfloat16)
    found, wanted = (
        with_gradients(lambda *args: attention(*args, implementation=name), q, k, v)  # noqa: B023
        for name in ("cudnn", "xla")
    )
    assert_same(found, wanted, atol=0.1)


def test_the_backend_is_chosen_for_device_and_arguments(monkeypatch):
    q, k, _ = draw(128, 128, dtype=jnp.bfloat16)
    bias = jnp.zeros((2, 128))
    assert _best(q, k, None, True) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _best(q, k, None, True) == "cudnn"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert _best(q, k, None, True) == "splash"
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert _best(q, k, bias, True) == "xla"
        assert _best(q, k, None, False) == "xla"
        assert _best(q[:, :1], k, None, True) == "xla"
