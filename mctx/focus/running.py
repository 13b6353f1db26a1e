"""Running sums, running maxima, searching and sorting, where XLA's own are slow on CPUs.

XLA lowers `cumsum` to windows that take several times as long as products with triangles, to run
and to compile; and it sorts one array of integers several times as fast as keys with their places.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 32
EXACT = 2**24  # whole numbers up to here add exactly in float32


def running_sum(x: jax.Array) -> jax.Array:
    """Sums over the first 1 … n of the last axis: float32, exact for whole numbers to 2^24."""
    blocks, n = _blocks(x.astype(jnp.float32), 0.0), x.shape[-1]
    within = _times(blocks, np.triu(np.ones((BLOCK, BLOCK), np.float32)))
    if blocks.shape[-2] > 1:
        totals = within[..., -1]
        within = within + (running_sum(totals) - totals)[..., None]
    return within.reshape(*x.shape[:-1], -1)[..., :n]


def running_count(x: jax.Array) -> jax.Array:
    """The same of whole numbers, as int32."""
    return running_sum(x).astype(jnp.int32)


def running_max(x: jax.Array) -> jax.Array:
    """The largest of the first 1 … n of the last axis."""
    n, low = x.shape[-1], jnp.finfo(x.dtype).min
    if n <= BLOCK:
        return jax.lax.cummax(x, x.ndim - 1)
    within = jax.lax.cummax(_blocks(x, low), x.ndim)
    before = running_max(within[..., -1])[..., :-1]
    before = jnp.concatenate([jnp.full_like(before[..., :1], low), before], axis=-1)
    return jnp.maximum(within, before[..., None]).reshape(*x.shape[:-1], -1)[..., :n]


def at_most(x: jax.Array, size: int) -> jax.Array:
    """How many of the whole numbers x [n], none negative, are at most 0 … size - 1: int32 [size].

    Rising numbers are searched so: one table, where a binary search gathers for every bit.
    """
    return running_count(jnp.zeros(size, jnp.float32).at[x].add(1.0, mode="drop"))


def _blocks(x, fill):
    """[…, n] -> […, blocks, BLOCK]."""
    n = x.shape[-1]
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -n % BLOCK)]
    return jnp.pad(x, pad, constant_values=fill).reshape(*x.shape[:-1], -1, BLOCK)


def _times(x, triangle):
    return jnp.matmul(x, triangle, precision=jax.lax.Precision.HIGHEST)


def rising_order(key: jax.Array) -> jax.Array:
    """Places of the smallest, the next, … of float32 [n]: `argsort`, stable, int32 [n].

    Digits of the key are sorted from the lowest, each packed into one integer with its place.
    """
    n = key.shape[-1]
    place_bits = max(1, (n - 1).bit_length())
    digit_bits = 32 - place_bits
    key = jnp.where(key == 0, 0.0, key)  # -0.0 too
    bits = jax.lax.bitcast_convert_type(key, jnp.uint32)
    bits = jnp.where(bits >> 31, ~bits, bits | np.uint32(2**31))  # rising as the floats rise
    place, order = jnp.arange(n, dtype=jnp.uint32), jnp.arange(n)
    for shift in range(0, 32, digit_bits):
        digit = (bits[order] >> shift) << place_bits
        sorted_ = jnp.sort(digit | place, stable=False)
        order = order[(sorted_ & np.uint32(2**place_bits - 1)).astype(jnp.int32)]
    return order


def largest(key: jax.Array, number: int) -> jax.Array:
    """Places of the largest `number` of float32 [n], largest first, of equals the first before."""
    if 4 * number <= key.shape[-1]:  # a heap is faster while it is small
        return jax.lax.top_k(jnp.where(key == 0, 0.0, key), number)[1]  # -0.0 too
    return rising_order(-key)[:number]
