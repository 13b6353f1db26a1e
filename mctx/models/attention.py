"""One attention function; the backend is chosen here and nowhere else (design: Base model)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mctx.models import flash_decode
from mctx.sharding import batch_axes, batch_ways

NEGATIVE = flash_decode.HIDDEN
SPLASH_BLOCK = 128  # the kernel takes lengths that are a multiple of it
CUDNN_ROWS = 8


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    behind: Sequence[tuple[jax.Array, jax.Array]] = (),
    bias: jax.Array | None = None,
    causal: bool = True,
    implementation: str | None = None,
) -> jax.Array:
    """Grouped-query attention in which the queries are the last T of the S keys.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H] with N a multiple of K and S >= T when causal.
      behind: keys and values that stand before these, in parts [B or 1, S_i, K, H] that are read
        where they lie; every query sees them, as far as the bias lets it.
      bias: [B, S], the parts behind first, added to the logits of every query and head: 0 for a
        visible key, `NEGATIVE` for a hidden one, a log-gate in between (design: LensNet, labels
        by gated gradients).
      causal: query t sees keys s <= t + S - T, so rows before the queries are all visible.
      implementation: 'xla', 'cudnn', 'splash', or None for the best that this device and these
        arguments allow.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    chosen = implementation or _best(q, k, bias, causal and not behind)
    if chosen == "cudnn":
        return _cudnn(q, k, v)
    if chosen == "splash":
        return _splash(q, k, v)
    return _xla(q, (*behind, (k, v)), bias, causal)


def attention_behind(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    layer: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """`attention` of entries behind the rows of stacked layers, of which it reads one.

    Args:
      q: [B, T, N, H]. k, v: the entries' own, [B, T, K, H].
      parts: keys and values before them, each [L, B or 1, S_i, K, H].
      layer: [], which of L.
      bias: [B, S], the parts first.
    """
    if parts and _reads_one(q, k, bias):
        own = k[None], v[None]
        return flash_decode.attend(q[:, 0], (*parts, own), bias, layer)[:, None]
    behind = [tuple(x[layer] for x in part) for part in parts]
    return attention(q, k, v, behind=behind, bias=bias)


def _reads_one(q, k, bias) -> bool:
    """Whether the kernel for one query a batch row takes these."""
    plain = q.shape[1] == 1 and bias is not None and q.dtype == jnp.bfloat16
    apart = not jax.sharding.get_abstract_mesh().shape  # XLA cannot split the kernel
    shape = flash_decode.fits(q.shape[2], k.shape[2], q.shape[3])
    return platform() == "gpu" and plain and apart and shape


def _best(q, k, bias, causal) -> str:
    """The fused kernels take the plain causal square; everything else is XLA's."""
    plain = bias is None and causal and q.shape[1] == k.shape[1]
    backend = platform()
    if backend == "gpu" and plain and q.dtype == jnp.bfloat16:  # cuDNN takes no float32
        return "cudnn"
    whole = q.shape[0] % batch_ways(jax.sharding.get_abstract_mesh()) == 0
    if backend == "tpu" and plain and whole and q.shape[1] >= SPLASH_BLOCK:
        return "splash"
    return "xla"


def platform() -> str:
    """Of the mesh in whose context this is traced (it may be of another machine), else here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _xla(q, parts, bias, causal):
    """Plain matrix products, grouped by key head: on CPUs about half the time of
    `jax.nn.dot_product_attention`, because the weights are normalised after they have met V."""
    b, t, n, h = q.shape
    kv = parts[0][0].shape[2]
    lengths = [k.shape[1] for k, _ in parts]
    s = sum(lengths)
    mask = jnp.zeros((1, 1, 1, 1, s)) if bias is None else bias[:, None, None, None]
    if causal:
        mask = jnp.where(jnp.arange(s) <= jnp.arange(t)[:, None] + s - t, mask, NEGATIVE)
    g = n // kv  # queries that share a key head; sizes are written out, for they may be zero
    groups = q.reshape(b, t, kv, g, h).transpose(0, 2, 3, 1, 4).reshape(b, kv, g * t, h)

    def scored(k, mask):
        scores = jnp.matmul(groups, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
        return scores.reshape(b, kv, g, t, k.shape[1]) * h**-0.5 + mask

    def weighed(weights, v):
        return jnp.matmul(
            weights.astype(v.dtype).reshape(b, kv, g * t, v.shape[1]),
            v.transpose(0, 2, 1, 3),
            preferred_element_type=jnp.float32,
        )

    masks = jnp.split(mask, np.cumsum(lengths)[:-1], axis=-1)
    scores = [scored(k, mask) for (k, _), mask in zip(parts, masks, strict=True)]
    best = [x.max(axis=-1, keepdims=True, initial=NEGATIVE) for x in scores]
    most = jax.lax.stop_gradient(functools.reduce(jnp.maximum, best))
    weights = [jnp.exp(x - most) for x in scores]
    out = sum(weighed(x, v) for x, (_, v) in zip(weights, parts, strict=True))
    total = sum(x.sum(axis=-1) for x in weights)
    out = out.reshape(b, kv, g, t, h) / total[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(q.dtype)


def _cudnn(q, k, v):
    """cuDNN's flash attention. It refuses odd lengths, and an ingest window behind its prefix is
    one: such are padded behind the last query, where nothing looks."""
    length = q.shape[1]
    pad = ((0, 0), (0, -length % CUDNN_ROWS), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, pad) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return out[:, :length]


@functools.cache
def _splash_kernel(length: int, heads: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def make():
        mask = splash.MultiHeadMask([splash.CausalMask((length, length)) for _ in range(heads)])
        return splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)

    # It holds arrays built for its mask, which must be concrete. Traces and meshes (of devices
    # that may be another machine's) are a thread's own: in a new one there are none.
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(make).result()


def _splash(q, k, v):
    """TPU's block-sparse kernel; off a TPU it runs interpreted, for parity tests only."""
    groups, length = q.shape[2] // k.shape[2], q.shape[1]
    pad = -length % SPLASH_BLOCK  # behind the last query, where nothing looks
    kernel = _splash_kernel(length + pad, q.shape[2], platform() != "tpu")
    scale = q.shape[-1] ** -0.5
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q * scale, k, v)]  # [B, N, T, H]
    heads_first[1:] = [jnp.repeat(x, groups, axis=1) for x in heads_first[1:]]
    heads_first = [jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in heads_first]
    out = _on_own_rows(jax.vmap(kernel))(*heads_first)[:, :, :length]
    return jnp.swapaxes(out, 1, 2).astype(q.dtype)


def _on_own_rows(function):
    """Runs a kernel, which XLA cannot split, on each device's rows of the batch."""
    axes = batch_axes(jax.sharding.get_abstract_mesh())
    if not axes:
        return function
    rows = PartitionSpec(axes)
    return jax.shard_map(function, in_specs=(rows,) * 3, out_specs=rows, check_vma=False)
