"""Bidirectional layers that GistNet and LensNet are built from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.models.attention import attention
from mctx.models.base import RMSNorm


class CrossAttention(nn.Module):
    """Queries look at keys, all of them or those whose bias allows it; residual, pre-norm.

    The output projection starts at zero, so that a new layer changes nothing.
    """

    n_heads: int

    @nn.compact
    def __call__(self, x, keys, bias=None):
        """x: [B, T, D]; keys: [B, S, D]; bias: [B, S] or None. Returns [B, T, D]."""
        head_dim = x.shape[-1] // self.n_heads

        def project(name, source):
            return nn.DenseGeneral(
                (self.n_heads, head_dim), use_bias=False, dtype=x.dtype, name=name
            )(source)

        normed = RMSNorm(1e-6, name="norm")(x)
        keys = normed if keys is None else RMSNorm(1e-6, name="key_norm")(keys)
        out = attention(
            project("q", normed), project("k", keys), project("v", keys), bias=bias, causal=False
        )
        return x + nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=x.dtype,
            name="o",
        )(out)


class FeedForward(nn.Module):
    """SwiGLU, residual, pre-norm; the output projection starts at zero."""

    d_ff: int

    @nn.compact
    def __call__(self, x):
        def dense(name, width, **kw):
            return nn.Dense(width, use_bias=False, dtype=x.dtype, name=name, **kw)

        normed = RMSNorm(1e-6, name="norm")(x)
        wide = nn.silu(dense("gate", self.d_ff)(normed)) * dense("up", self.d_ff)(normed)
        return x + dense("down", x.shape[-1], kernel_init=nn.initializers.zeros)(wide)


class LayerMix(nn.Module):
    """A learned, gated sum of the base's hidden states of all layers, projected to `width`.

    Every layer's state is normalised first (their norms differ by orders of magnitude), then
    weighted per channel. Embeddings alone carry nothing of the context (design: GistNet), so the
    deeper layers must be able to win: all start equal.
    """

    width: int

    @nn.compact
    def __call__(self, states):
        """states: [L + 1, B, T, D] -> [B, T, width]."""
        x = _normed(states)
        layers, dim = x.shape[0], x.shape[-1]
        gate = self.param("gate", nn.initializers.constant(1 / layers), (layers, dim))
        mixed = jnp.einsum("lbtd,ld->btd", x, gate).astype(states.dtype)
        return nn.Dense(self.width, use_bias=False, dtype=states.dtype, name="project")(mixed)


class AllLayers(nn.Module):
    """As `LayerMix`, with a projection of its own for every layer: none overwrites another."""

    width: int

    @nn.compact
    def __call__(self, states):
        """states: [L + 1, B, T, D] -> [B, T, width]."""
        layers, dim = states.shape[0], states.shape[-1]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1))
        kernel = self.param("project", init, (layers, dim, self.width)).astype(states.dtype)
        return jnp.einsum("lbtd,ldw->btw", _normed(states).astype(states.dtype), kernel)


def _normed(states):
    """Every layer's states at one length, in float32."""
    x = states.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
