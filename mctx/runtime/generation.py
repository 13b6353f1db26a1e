"""Tokens drawn one by one behind a session's working contexts."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.runtime import reading


@functools.partial(jax.jit, static_argnames=("top_k",))
def draw(key: jax.Array, logits: jax.Array, temperature, top_k: int, top_p) -> jax.Array:
    """One token from [V] logits. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing."""
    scaled = logits / jnp.maximum(temperature, 1e-6)
    if top_k:
        scaled = jnp.where(scaled < jax.lax.top_k(scaled, top_k)[0][-1], -jnp.inf, scaled)
    ranked = jnp.sort(scaled)[::-1]
    mass = jnp.cumsum(jax.nn.softmax(ranked))
    # The smallest set whose mass reaches top_p: its last member is the least that may be drawn.
    least = ranked[jnp.minimum(jnp.sum(mass < top_p), len(ranked) - 1)]
    drawn = jax.random.categorical(key, jnp.where(scaled < least, -jnp.inf, scaled))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits))


def stream(
    session,
    tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: tuple[str, ...] = (),
) -> Iterator[str]:
    """Text as it is drawn, up to `tokens` tokens, the end of the text, or a stop string.

    Every token drawn is read like any other: blocks complete, the tree grows, the focus moves.

    Raises:
      UserError: a setting is out of its range.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or tokens < 0:
        raise UserError("temperature, top_k and tokens must be >= 0, and top_p in (0, 1].")
    key, tokenizer = jax.random.key(seed), session.opened.tokenizer
    ids: list[int] = []
    whole, said = "", 0
    for i in range(tokens):
        logits = reading.next_logits(session.params["base"], session.tail.last)
        step = jax.random.fold_in(key, i)
        token = int(draw(step, logits, temperature, top_k, top_p))
        if token == tokenizer.eot_id:
            break
        ids.append(token)
        session.read_tokens(np.array([token], np.int32))
        # Bytes of a character may be split over tokens: what is not whole yet is held back.
        text = tokenizer.decode(ids)
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        ends = [whole.find(s) for s in stop if s and s in whole]
        if ends:
            whole = whole[: min(ends)]
            break
        settled = len(whole) - _begun(whole, stop)
        yield whole[said:settled]
        said = settled
    yield whole[said:]


def _begun(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the text's end that may turn out to begin a stop string."""
    lengths = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return max(lengths, default=0)
