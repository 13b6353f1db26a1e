"""Methods that simply read tokens: the base reads them afresh, in one go, and then the tail.

StreamingLLM keeps the rows it once computed; computing its window afresh is its best case.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods.standing import Asked, Standing, empty_tail
from mctx.flops import operations
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows
from mctx.models.wrapped import Wrapped, read
from mctx.runtime.rows import buffer_of

if TYPE_CHECKING:
    from experiments.methods.scorer import Scorer


def full(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
    """The whole history behind the prefix; undefined where the base was not trained to read it, or
    what follows it, so far away."""
    if asked.fits:
        yield fresh(scorer, ((0, scorer.length),), scorer.model.base.window)


def recent(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
    """The last `budget` tokens, without the prefix."""
    first = max(scorer.length - scorer.protocol.budget, 0)
    spans = ((first, scorer.length),)
    yield fresh(scorer, spans, scorer.protocol.budget, prefix=first == 0)


def sinks_recent(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
    """The prefix, the first blocks, and as many of the last tokens as the budget leaves."""
    budget = scorer.protocol.budget
    sinks = min(scorer.protocol.sink * scorer.model.gist.block, budget, scorer.length)
    first = max(scorer.length - (budget - sinks), sinks)
    yield fresh(scorer, ((0, sinks), (first, scorer.length)), budget)


def fresh(
    scorer: Scorer, spans: tuple[tuple[int, int], ...], size: int, prefix: bool = True
) -> Standing:
    """These spans of the history's tokens, read in one go in a shape of `size`."""
    model, block = scorer.model, scorer.model.gist.block
    tokens = np.zeros(size, np.int32)
    where = np.concatenate([np.arange(*span) for span in spans])
    read_now = [scorer.history.tree.tokens(*span) for span in spans]
    tokens[: len(where)] = np.concatenate(read_now)
    bias = np.float32(0.0 if prefix else NEGATIVE)
    rows = read_fresh(model, scorer.params, scorer.prefix, tokens, bias)
    count = np.array([len(where)], np.int32)
    buffer = buffer_of(model, scorer.prefix, rows, count)
    inside = np.bincount(where // block, minlength=1)
    return Standing(
        buffer,
        empty_tail(model, None, block),
        False,
        bias,
        np.flatnonzero(inside == block),
        flops=operations(read_fresh, (model,), scorer.params, scorer.prefix, tokens, bias),
    )


@functools.partial(jax.jit, static_argnums=0)
def read_fresh(model: Wrapped, params: dict, prefix: Rows, tokens, prefix_bias) -> Rows:
    """Rows [L, 1, T, K, h] of tokens [T] behind the prefix; padding at the end harms nothing."""
    p = prefix.k.shape[2]
    context = Context(prefix, jnp.arange(p)[None], jnp.full((1, p), prefix_bias))
    positions = p + jnp.arange(tokens.shape[0])[None]
    return read(model, params, tokens[None], positions, context).rows
