"""NLL of the plain base by position in its window, and what its whole window is worth to it."""

import functools

import jax
import jax.numpy as jnp

from experiments.suites import Suite
from experiments.suites.rows import in_batches, nll_row
from experiments.suites.segments import Segments
from mctx.models.base import token_nll
from mctx.models.wrapped import Wrapped, read
from mctx.opened import Opened

BORDERS = (0, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def length(model: Wrapped) -> int:
    return model.base.window - len(model.base.prefix)


def buckets(size: int) -> list[tuple[int, int]]:
    """Ranges of positions up to `size`, their borders from `BORDERS`."""
    edges = [*(b for b in BORDERS if b < size), size]
    return list(zip(edges[:-1], edges[1:], strict=True))


def measure(opened: Opened, segments: Segments, seed: int) -> dict[str, list[dict]]:
    """Segments [n, T] behind the prefix; the first token counts too, if a prefix predicts it."""
    model, tokens, groups = opened.model, segments.tokens, segments.units
    prefix = jnp.asarray(model.base.prefix, jnp.int32)
    first = 0 if len(prefix) else 1

    @jax.jit
    def score(params, tokens):
        entries = jnp.concatenate(
            [jnp.broadcast_to(prefix, (len(tokens), len(prefix))), tokens[:, :-1]], axis=1
        )
        positions = jnp.broadcast_to(jnp.arange(entries.shape[1]), entries.shape)
        hidden = read(model, params, entries, positions).hidden[:, len(prefix) - 1 + first :]
        return token_nll(params["base"], hidden, tokens[:, first:])

    nll = in_batches(lambda piece: score(opened.params, piece), tokens)  # [n, T - first]
    found = buckets(tokens.shape[1])
    some = {f"position {a:,}–{b:,}": nll[:, max(a - first, 0) : b - first] for a, b in found}
    some["all positions"] = nll
    rows = [nll_row(what, part.mean(axis=1), groups, seed) for what, part in some.items()]
    return {"base": rows + _by_context(opened, tokens, nll, groups, seed)}


def _by_context(opened, tokens, nll, groups, seed) -> list[dict]:
    """The same last tokens behind a quarter of the window and behind all of it, in pairs: tokens
    further on in a text are others, so positions alone do not say what context is worth."""
    size = tokens.shape[1]
    scored, short = (size + 1) // 8, (size + 1) // 4
    tail = functools.partial(tail_of_base, opened.model, scored + 1, opened.params["base"])
    near = in_batches(tail, tokens[:, -short - scored :]).mean(axis=1)
    far = nll[:, -scored:].mean(axis=1)
    ways = {f"behind {short:,}": near, f"behind {size - scored:,}": far, "difference": far - near}
    return [nll_row(f"last {scored:,}, {way}", each, groups, seed) for way, each in ways.items()]


@functools.partial(jax.jit, static_argnums=(0, 1))
def tail_of_base(model: Wrapped, tail: int, base: dict, tokens: jax.Array) -> jax.Array:
    """The plain base over prefix and segments [B, T]: NLL of the last `tail - 1`, [B, tail - 1]."""
    prefix = jnp.asarray(model.base.prefix, jnp.int32)
    prefix = jnp.broadcast_to(prefix, (len(tokens), len(prefix)))
    entries = jnp.concatenate([prefix, tokens], axis=1)
    positions = jnp.broadcast_to(jnp.arange(entries.shape[1]), entries.shape)
    hidden = read(model, {"base": base}, entries, positions).hidden
    return token_nll(base, hidden[:, -tail:-1], tokens[:, 1 - tail :])


SUITE = Suite(("base",), length, measure)
