"""One new entry's attention on a GPU: every row behind it is read once, where it lies.

XLA makes a dozen kernels of this, and copies a layer's rows out of the stack before it multiplies
them; together they took as long as reading the weights of a 1B-class model. Here the rows are cut
into pieces that are read side by side, and their softmaxes joined (Dao et al., "Flash-Decoding for
long-context inference", 2023). Written for Pallas' Triton backend.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)
TILE = 64  # rows that one round of a program reads
LEAST = 256  # rows of a program
MOST = 32  # programs of a part, for each key head
QUERIES = 16  # the least that a matrix product on tensor cores takes


def fits(heads: int, kv_heads: int, width: int) -> bool:
    """Whether the kernel takes heads of these numbers and of this width."""
    return width >= 16 and width & (width - 1) == 0 and heads // kv_heads <= QUERIES


def attend(
    q: jax.Array,
    parts: Sequence[tuple[jax.Array, jax.Array]],
    bias: jax.Array,
    layer: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Grouped-query attention of one query a batch row over keys and values in parts.

    Args:
      q: [B, N, H].
      parts: k and v, each [L or 1, B or 1, S_i, K, H]; of stacked layers, `layer`'s is read.
      bias: [B, S] over all parts in their order, as in `attention`.
      layer: [].

    Returns:
      [B, N, H] in q's dtype.
    """
    (b, n, h), kv = q.shape, parts[0][0].shape[3]
    cuts = [_cut(k.shape[2]) for k, _ in parts]
    pieces, group = sum(count for _, count in cuts), n // kv
    shapes = [(b, kv, pieces, group, h), (b, kv, pieces, group), (b, kv, pieces, group)]
    flat = [x for part in parts for x in part]
    partial, most, total = pl.pallas_call(
        functools.partial(_pieces, cuts=cuts, group=group),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(b, kv, pieces),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=3),
        name="attend_one",
    )(layer.reshape(1), q, bias, *flat)
    best = jnp.max(most, axis=2, keepdims=True)
    weights = jnp.exp(most - best)
    out = jnp.sum(partial * weights[..., None], axis=2)
    out = out / jnp.sum(total * weights, axis=2)[..., None]
    return out.reshape(b, n, h).astype(q.dtype)


def _cut(rows: int) -> tuple[int, int]:
    """Rows of a program, and the programs of a part with so many rows."""
    each = max(LEAST, -(-rows // MOST // TILE) * TILE)
    return each, -(-rows // each)


def _pieces(layer_ref, q_ref, bias_ref, *refs, cuts, group):
    """One program: which part its rows are of is told by its number."""
    parts, (out_ref, most_ref, total_ref) = refs[:-3], refs[-3:]
    row, head, piece = (pl.program_id(axis) for axis in range(3))
    some = jnp.arange(QUERIES) < group
    of_head = q_ref.at[row, pl.ds(head * group, QUERIES), :]
    q = triton.load(of_head, mask=some[:, None], other=0.0)  # [G, H]
    first, offset = 0, 0
    for (each, count), k_ref, v_ref in zip(cuts, parts[::2], parts[1::2], strict=True):
        length = k_ref.shape[2]
        whole = jnp.int32(0)
        here = (
            layer_ref[0] if k_ref.shape[0] > 1 else whole,
            row if k_ref.shape[1] > 1 else whole,
        )

        @pl.when((piece >= first) & (piece < first + count))
        def _(each=each, first=first, offset=offset, length=length, here=here, k=k_ref, v=v_ref):
            begin = (piece - first) * each
            read = functools.partial(_tile, q, k, v, bias_ref, row, head, here, offset, length)
            tiles = jnp.minimum(each, length - begin)
            empty = (
                jnp.full(QUERIES, HIDDEN, jnp.float32),
                jnp.zeros(QUERIES, jnp.float32),
                jnp.zeros(q.shape, jnp.float32),
            )
            most, total, out = jax.lax.fori_loop(
                0, pl.cdiv(tiles, TILE), lambda i, so_far: read(begin + i * TILE, so_far), empty
            )
            mine = row, head, piece, pl.ds(0, QUERIES)
            triton.store(out_ref.at[*mine, :], out, mask=some[:, None])
            triton.store(most_ref.at[mine], most, mask=some)
            triton.store(total_ref.at[mine], total, mask=some)

        first, offset = first + count, offset + length


def _tile(q, k_ref, v_ref, bias_ref, row, head, here, offset, length, at, so_far):
    """One round: the softmax so far with `TILE` more rows in it."""
    most, total, out = so_far
    inside, where = at + jnp.arange(TILE) < length, (*here, pl.ds(at, TILE), head, slice(None))
    k = triton.load(k_ref.at[where], mask=inside[:, None], other=0.0)  # [TILE, H]
    v = triton.load(v_ref.at[where], mask=inside[:, None], other=0.0)
    bias = triton.load(bias_ref.at[row, pl.ds(offset + at, TILE)], mask=inside, other=HIDDEN)
    scores = triton.dot(q, k.astype(q.dtype), trans_b=True) * q.shape[-1] ** -0.5 + bias[None, :]
    higher = jnp.maximum(most, scores.max(axis=-1))
    weights = jnp.exp(scores - higher[:, None])
    kept = jnp.exp(most - higher)
    total = total * kept + weights.sum(axis=-1)
    out = out * kept[:, None] + triton.dot(weights.astype(v.dtype), v)
    return higher, total, out
