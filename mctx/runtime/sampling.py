"""How a token is drawn from logits."""

from __future__ import annotations

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

from mctx.errors import UserError

COLDEST = 1e-6  # below this a temperature would overflow the logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of a continuation.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token (greedy).
      top_k: draw from the k likeliest tokens; 0 cuts nothing.
      top_p: of those, draw from the fewest whose probabilities reach top_p; 1 cuts nothing.
      seed: the same seed behind the same history draws the same text.

    Raises:
      UserError: a setting is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        wants = [
            (
                _real(self.temperature) and 0 <= self.temperature < math.inf,
                f"temperature must be a number from 0 (greedy) on, not {self.temperature!r}.",
            ),
            (
                isinstance(self.top_k, numbers.Integral) and 0 <= self.top_k < 2**31,
                f"top_k must be a whole number from 0 (which cuts nothing) on, not {self.top_k!r}.",
            ),
            (
                _real(self.top_p) and 0 < self.top_p <= 1,
                f"top_p must lie above 0 and at most at 1 (all tokens), not {self.top_p!r}.",
            ),
            (
                isinstance(self.seed, numbers.Integral) and 0 <= self.seed < 2**32,
                f"seed must be a whole number from 0 to 2^32 - 1, not {self.seed!r}.",
            ),
        ]
        for holds, sentence in wants:
            if not holds:
                raise UserError(sentence)

    @property
    def kind(self) -> str:
        """Which program draws: 'greedy', 'plain' (nothing is cut) or 'cut'; values are data."""
        if self.temperature == 0:
            return "greedy"
        return "cut" if self.top_k or self.top_p < 1 else "plain"


def draw(
    kind: str, key: jax.Array, logits: jax.Array, temperature, top_k, top_p
) -> jax.Array:
    """One token from logits [V]; see `Sampling` for the settings, which may be traced.

    Ties count as the lower token first, in every kind: the one likeliest token is the greedy one.
    """
    if kind == "greedy":
        return jnp.argmax(logits)
    scaled = logits / jnp.maximum(temperature, COLDEST)
    if kind == "cut":
        scaled = jnp.where(_kept(scaled, top_k, top_p), scaled, -jnp.inf)
    return jax.random.categorical(key, scaled)


def _kept(scaled, top_k, top_p):
    """Which tokens may be drawn: [V] bool, never none."""
    order = jnp.argsort(-scaled, stable=True)
    rank = jnp.arange(len(scaled))
    inside = jnp.where(top_k > 0, rank < top_k, True)
    mass = jax.nn.softmax(jnp.where(inside, scaled[order], -jnp.inf))
    # The smallest set whose mass reaches top_p: a token is in it if those before do not reach it.
    inside &= (jnp.cumsum(mass) - mass < top_p) | (rank == 0)
    return jnp.zeros(len(scaled), bool).at[order].set(inside)


def _real(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
