"""What blocks are worth to known tokens: by gated gradients, or exactly, one block at a time.

The known tokens are the tail itself (hindsight: a bound, or cross-fitted), or the last tokens of
the history (the query gradient, the training-free twin of the lens).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods.choosing import ranked
from experiments.methods.focused import roomy, tokens_config
from experiments.methods.standing import Asked, Standing, room
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows
from mctx.models.wrapped import Wrapped, tail_nll
from mctx.training.labels import EPSILON, HIDDEN, gated_utility

if TYPE_CHECKING:
    from experiments.methods.scorer import Scorer

SET = 44  # candidates labelled together, where so many fit the trained window with what is behind
EACH = 4  # candidates that are read at once, each in a context of its own
QUERY = 4  # blocks whose NLL the query gradient is of

Label = Callable[["Scorer", np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def query_gradient(scorer: Scorer, asked: Asked) -> np.ndarray:
    """Labels of the history's own last tokens, for every block before the recent ones."""
    block, blocks = scorer.model.gist.block, scorer.blocks
    first = max(blocks - QUERY, 1)
    tokens = scorer.history.tree.tokens(first * block - 1, scorer.length)
    weights = np.ones(len(tokens) - 1, np.float32)
    candidates = np.arange(min(max(blocks - scorer.protocol.recent, 0), first))
    worth = np.full(blocks, -np.inf)
    worth[candidates] = gated(scorer, candidates, candidates[:0], tokens, weights)
    return ranked(worth)


def hindsight(label: Label, crossed: bool):
    """A method: the blocks worth most to the tail.

    Args:
      label: nats of each candidate.
      crossed: chosen on the odd tokens and scored on the even ones, and the other way round, so
        that every token is scored and none has helped to choose what it is read behind.
    """

    def stand(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
        place = np.arange(len(asked.tail) - 1) % 2
        folds = (place == 0, place == 1) if crossed else (None,)
        config = roomy(scorer, tokens_config(scorer.model, scorer.protocol))
        if config is None:
            return
        candidates = considered(scorer)
        old = max(scorer.blocks - scorer.protocol.recent, 0)
        for scored in folds:
            weights = asked.weights if scored is None else asked.weights * ~scored
            table = np.full(scorer.blocks, -1.0)
            recent = np.arange(old, scorer.blocks)
            table[candidates] = label(scorer, candidates, recent, asked.tail, weights)
            yield scorer.focused(config, table)._replace(scored=scored)

    return stand


def considered(scorer: Scorer) -> np.ndarray:
    """Blocks that hindsight may choose, rising: all, or as many as the protocol allows, half of
    them the newest, the others those that the lens shows, and from all over the history."""
    old = max(scorer.blocks - scorer.protocol.recent, 0)
    most = scorer.protocol.candidates or old
    if old <= most:
        return np.arange(old)
    half = most // 2
    near = np.arange(old - half, old)
    shown = scorer.layout("lens")
    shown = near[:0] if shown is None else shown
    far = np.setdiff1d(shown[shown < old], near)[-half:]
    rest = np.setdiff1d(np.arange(old), np.concatenate([near, far]))
    free = most - len(near) - len(far)
    spread = rest[np.linspace(0, len(rest) - 1, free).astype(int)]
    return np.sort(np.concatenate([near, far, spread]))


# -- labels --------------------------------------------------------------------------------


def gated(scorer, candidates, recent, tail, weights) -> np.ndarray:
    """Gated-gradient labels, in sets that lie spread over the history: [candidates] nats."""
    tail, weights = padded(scorer, tail, weights)
    base, block = scorer.model.base, scorer.model.gist.block
    left = (base.window - len(base.prefix) - tail.shape[1]) // block - len(recent)
    size = max(min(SET, left), 1)
    count = -(-len(candidates) // size)
    worth = np.zeros(len(candidates))
    for first in range(count):
        chosen = candidates[first::count]
        empty = size - len(chosen)
        places = np.concatenate([np.zeros(empty, int), chosen, recent])
        gates = np.full((1, size), EPSILON, np.float32)
        gates[:, :empty] = HIDDEN
        rows = rows_of(scorer, places)
        found = scorer.run(
            _gated, (scorer.model,), scorer.params, rows, scorer.prefix, tail, weights, gates
        )
        worth[first::count] = np.asarray(found)[0, empty:]
    return worth


@functools.partial(jax.jit, static_argnums=0)
def _gated(model: Wrapped, params, rows, prefix, tail, weights, gates):
    size, blocks = gates.shape[1], rows.k.shape[2] // model.gist.block
    first, last = jnp.arange(size)[None], jnp.arange(size, blocks)
    return gated_utility(model, params, rows, prefix, first, last, tail, weights, gates)


def left_in(scorer, candidates, recent, tail, weights) -> np.ndarray:
    """What the NLL falls by when one candidate is shown before the recent blocks: [candidates]."""
    tail, weights = padded(scorer, tail, weights)
    behind = rows_of(scorer, recent)

    def total(chosen, visible):  # [EACH] blocks -> [EACH] nats
        held = rows_of(scorer, chosen, together=False)
        bias = np.where(visible, 0.0, NEGATIVE).astype(np.float32)
        static = (scorer.model,)
        arguments = scorer.params, held, behind, scorer.prefix, bias, tail, weights
        return np.asarray(scorer.run(_total, static, *arguments))

    none = total(np.full(EACH, candidates[0]), np.zeros(EACH, bool))[0] if len(candidates) else 0
    whole = np.pad(candidates, (0, -len(candidates) % EACH), mode="edge")
    found = [total(chosen, np.ones(EACH, bool)) for chosen in whole.reshape(-1, EACH)]
    return none - np.concatenate([*found, np.zeros(0)])[: len(candidates)]


@functools.partial(jax.jit, static_argnums=0)
def _total(model: Wrapped, params, held, recent, prefix, bias, tail, weights):
    """[n] weighted NLL of a tail behind the prefix, one block each ([L, n, K_1, K, h], its bias
    [n]), and the recent blocks [L, 1, r·K_1, K, h]."""
    n, block = held.k.shape[1:3]

    def join(p, own, r):
        shared = (jnp.broadcast_to(x, (x.shape[0], n, *x.shape[2:])) for x in (p, r))
        first, last = shared
        return jnp.concatenate([first, own, last], axis=2)

    rows = Rows(*(join(*parts) for parts in zip(prefix, held, recent, strict=True)))
    length, p = rows.k.shape[2], prefix.k.shape[2]
    shown = jnp.zeros((n, length)).at[:, p : p + block].set(bias[:, None])
    positions = jnp.broadcast_to(jnp.arange(length), (n, length))
    context = Context(rows, positions, shown)
    tails = jnp.broadcast_to(tail, (n, tail.shape[1]))
    return tail_nll(model, params, tails, context, jnp.full(n, length)) @ weights


def padded(scorer, tail, weights) -> tuple[np.ndarray, np.ndarray]:
    """A tail [1, C + 1] in one of few shapes; what is added counts for nothing."""
    size = room(len(tail) - 1, scorer.model.gist.block)
    missing = size + 1 - len(tail)
    return (
        np.pad(tail, (0, missing))[None].astype(np.int32),
        np.pad(weights, (0, missing)).astype(np.float32),
    )


def rows_of(scorer, blocks: np.ndarray, together: bool = True) -> Rows:
    """Rows of blocks, packed as one context [L, 1, n·K_1, K, h] or each its own [L, n, K_1, …]."""
    if not len(blocks):
        return Rows(*(x[:, :, :0] for x in scorer.prefix))
    held = scorer.history.cache.get(blocks)  # [n, L, K_1, K, h]
    apart = Rows(*(np.swapaxes(x, 0, 1) for x in held))
    if not together:
        return apart
    return Rows(*(x.reshape(x.shape[0], 1, -1, *x.shape[3:]) for x in apart))
