"""Hidden states of several working contexts become one, before the one LM-head call.

The weights are convex, so heads that agree merge to what they agree on, and one head through the
merger is that head, exactly, by construction (design: Multi-head focus).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class Merger(nn.Module):
    """Weights of each head for each token, from that head's hidden state and the router's gate."""

    d_model: int = 64

    @nn.compact
    def __call__(self, hidden: jax.Array, gate: jax.Array) -> jax.Array:
        """hidden: [k, B, T, D]; gate: [B, k] -> weights [k, B, T] that sum to one over k."""
        x = nn.silu(nn.Dense(self.d_model, name="in")(hidden.astype(jnp.float32)))
        # Relative to the other heads: what all heads share says nothing about whom to trust.
        x = x - jnp.mean(x, axis=0, keepdims=True)
        score = nn.Dense(1, kernel_init=nn.initializers.zeros, name="out")(x)[..., 0]
        trust = self.param("trust", nn.initializers.zeros, ())
        return jax.nn.softmax(score + trust * gate.T[:, :, None], axis=0)


def average(hidden: jax.Array) -> jax.Array:
    """The merger without parameters: equal weights [k, B, T]."""
    return jnp.full(hidden.shape[:-1], 1 / hidden.shape[0])


def merge(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """[k, B, T, D] and convex [k, B, T] -> [B, T, D] in hidden's dtype."""
    merged = jnp.sum(hidden.astype(jnp.float32) * weights[..., None], axis=0)
    return merged.astype(hidden.dtype)
