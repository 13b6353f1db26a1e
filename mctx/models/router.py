"""Mixture of Focus: which heads the base runs on (design: Multi-head focus).

Decided once per refocus, from numbers that cost no base pass: the query and how each head's lens
scored what it shows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.models.blocks import LayerMix

STATISTICS = 4  # numbers that `statistics` returns per head


class Routing(NamedTuple):
    """The heads to run, best first.

    Attributes:
      heads: [B, k], int32.
      gate: [B, k], what the router thinks of each: a bias of the merger's softmax, nats.
    """

    heads: jax.Array
    gate: jax.Array


class Router(nn.Module):
    """The learned router: predicted worth of each head from the query and its statistics."""

    d_model: int = 64

    @nn.compact
    def __call__(self, states: jax.Array, stats: jax.Array) -> jax.Array:
        """states: [L + 1, B, Q, D]; stats: [B, H, STATISTICS] -> [B, H], nats of a whole tail, up
        to what all heads share."""
        query = jnp.mean(LayerMix(self.d_model, name="mix")(states), axis=1)  # [B, d]
        heads = stats.shape[1]
        per_head = nn.Dense(self.d_model, name="stats")(stats)  # [B, H, d]
        place = self.param("place", nn.initializers.normal(0.02), (heads, self.d_model))
        x = nn.silu(per_head + place + nn.Dense(self.d_model, name="query")(query)[:, None])
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="worth")(x)[..., 0]


def statistics(utility: jax.Array, detailed: jax.Array, valid: jax.Array) -> jax.Array:
    """How a head's lens sees its own layout.

    Args:
      utility: [..., n] of the layout's nodes. detailed: [..., n], shown as tokens. valid: [..., n].

    Returns:
      [..., STATISTICS]: utility shown, the best shown, the best not shown, share of nodes wanted.
    """
    gain = jnp.where(valid, utility, 0.0)
    shown = jnp.sum(jnp.where(detailed, gain, 0.0), axis=-1)
    best_shown = jnp.max(jnp.where(detailed, gain, 0.0), axis=-1)
    best_missed = jnp.max(jnp.where(detailed, 0.0, gain), axis=-1)
    wanted = jnp.sum((gain > 0) & valid, axis=-1) / jnp.maximum(jnp.sum(valid, axis=-1), 1)
    return jnp.stack([shown, best_shown, best_missed, wanted], axis=-1)


def route(worth: jax.Array, k: int) -> Routing:
    """The k heads of greatest worth: [B, H] -> Routing.

    The three routers differ only in where `worth` comes from: `static_worth`, the utility shown
    (`statistics[..., 0]`), or `Router`.
    """
    gate, heads = jax.lax.top_k(worth, k)
    return Routing(heads.astype(jnp.int32), gate)


def static_worth(batch: int, heads: int) -> jax.Array:
    """Always the first heads, all alike once chosen: [B, H]."""
    return jnp.broadcast_to(-1e-6 * jnp.arange(heads, dtype=jnp.float32), (batch, heads))
