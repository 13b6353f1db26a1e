"""Rotary position embeddings, applied when a key is read and never before (design: Positions)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the low frequencies (the `llama3` rope type of its configs)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_window: int


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Angular frequencies in radians per position: [head_dim / 2], float32."""
    freqs = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        wavelength = 2 * math.pi / freqs
        # 0 where the wavelength exceeds the old window (stretched), 1 where it is short (kept).
        turns = scaling.original_window / wavelength
        keep = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        keep = np.clip(keep, 0.0, 1.0)
        freqs = keep * freqs + (1 - keep) * freqs / scaling.factor
    return freqs.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, freqs: np.ndarray) -> jax.Array:
    """Rotates the two halves of every head by its position's angles.

    Args:
      x: [..., T, N, H].
      positions: [..., T], integer or float.
      freqs: [H / 2] from `frequencies`.

    Returns:
      [..., T, N, H] in x's dtype; angles are computed in float32.
    """
    angles = positions[..., None].astype(jnp.float32) * freqs  # [..., T, H/2]
    sin, cos = jnp.sin(angles)[..., None, :], jnp.cos(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
