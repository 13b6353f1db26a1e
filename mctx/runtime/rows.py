"""Keys and values on the device: what stands before the tokens that a session reads.

Every function is compiled once per configuration; nothing here depends on the history's length.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mctx.models.base import Rows, rotated
from mctx.models.wrapped import Wrapped


class Buffer(NamedTuple):
    """What stands before the tail, for the heads that run. Its keys are rotated for the places
    where they stand, once a refocus, so that a step of decoding only reads them.

    Attributes:
      prefix: [L, 1, P, K, h], the shared prefix's rows.
      rows: [L, k, R, K, h]; count: [k], the valid prefix of them.
    """

    prefix: Rows
    rows: Rows
    count: jax.Array


class TailRows(NamedTuple):
    """Of the tokens in a tail: k (unrotated) and v, and k rotated, each [L, k, T, K, h]."""

    k: jax.Array
    v: jax.Array
    rotated: jax.Array


class Tail(NamedTuple):
    """Tokens read since the last refocus, by the heads that the router chose.

    Attributes:
      rows: [L, k, T, K, h]; length: []; last: [D], merged hidden state of the last token read.
      heads, gate: [k], the routing.
    """

    rows: TailRows
    length: jax.Array
    last: jax.Array
    heads: jax.Array
    gate: jax.Array


def empty_rows(model: Wrapped, heads: int, length: int, where: Sharding | None = None) -> Rows:
    """Zeros, [L, heads, length, K, h]; where they stand: see `sharding.beside`."""
    return Rows(*_zeros(model, heads, length, where, 2))


def empty_tail_rows(
    model: Wrapped, heads: int, length: int, where: Sharding | None = None
) -> TailRows:
    """As `empty_rows`."""
    return TailRows(*_zeros(model, heads, length, where, 3))


def _zeros(model, heads, length, where, count):
    c = model.base
    shape = (c.n_layers, heads, length, c.n_kv_heads, c.head_dim)
    return [jnp.zeros(shape, jnp.dtype(model.dtype), device=where) for _ in range(count)]


@functools.partial(jax.jit, donate_argnums=0)
def move_rows(rows: Rows, head, to, source) -> Rows:
    """Copies rows within one head's buffer; `to` past the end is dropped: [m], [m]."""
    return Rows(
        *(x.at[:, head, to].set(x[:, head, source], mode="drop") for x in rows)
    )


@functools.partial(jax.jit, donate_argnums=0)
def write_rows(rows: Rows, head, to, new: Rows) -> Rows:
    """Writes rows [L, m, K, h] into one head's buffer; `to` past the end is dropped."""
    return Rows(
        *(
            x.at[:, head, to].set(n.astype(x.dtype), mode="drop")
            for x, n in zip(rows, new, strict=True)
        )
    )


@functools.partial(jax.jit, donate_argnums=0)
def write_tail(rows: Rows, head, to, k: jax.Array, v: jax.Array, slot) -> Rows:
    """As `write_rows`, of one head's rows in a tail [L, k, T, K, h]."""
    return write_rows(rows, head, to, Rows(k[:, slot], v[:, slot]))


@functools.partial(jax.jit, donate_argnums=0)
def write_blocks(rows: Rows, head, to, blocks: list) -> Rows:
    """As `write_rows`, of blocks that come apart: pairs of keys and values [L, K_1, K, h]."""
    joined = Rows(*(jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)))
    return write_rows(rows, head, to, joined)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def turn(model: Wrapped, keys: jax.Array, rows: jax.Array, heads, at, positions) -> jax.Array:
    """`keys` [L, n, R, K, h] in which those of some heads stand, rotated, from place `at` on.

    Args:
      rows: unrotated keys [L, m, R, K, h]. heads: [k], which of them. positions: [k, R], from the
        prefix's end on.
    """
    positions = len(model.base.prefix) + positions
    turned = rotated(model.base, rows[:, heads], positions)
    return jax.lax.dynamic_update_slice_in_dim(keys, turned, at, axis=1)


@functools.partial(jax.jit, donate_argnums=0)
def choose(values: jax.Array, rows: jax.Array, heads, at) -> jax.Array:
    """As `turn`, for values, which are only copied."""
    return jax.lax.dynamic_update_slice_in_dim(values, rows[:, heads], at, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def turned_prefix(model: Wrapped, prefix: Rows) -> Rows:
    """The shared prefix as it is read: [L, 1, P, K, h]."""
    k = rotated(model.base, prefix.k, jnp.arange(prefix.k.shape[2])[None])
    dtype = jnp.dtype(model.dtype)
    return Rows(k.astype(dtype), prefix.v.astype(dtype))


def buffer_of(model: Wrapped, prefix: Rows, rows: Rows, count) -> Buffer:
    """A buffer of rows [L, k, R, K, h] that stand in their order; keys unrotated."""
    k, length = rows.k.shape[1:3]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (k, length))
    keys = turn(model, jnp.zeros_like(rows.k), rows.k, np.arange(k), np.int32(0), positions)
    return Buffer(turned_prefix(model, prefix), Rows(keys, rows.v), np.asarray(count, np.int32))
