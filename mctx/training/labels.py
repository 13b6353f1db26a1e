"""Labels by gated gradients: what each block is worth to a continuation, in one backward pass.

Every candidate's rows are shown at gate epsilon (an additive log-gate on the attention they
receive); minus the gradient of the continuation's NLL with respect to the gates is the marginal
utility of each (design: LensNet). Candidates are labelled in sets that fit the trained window.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mctx.focus.bank import plain_context
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped, tail_nll

EPSILON = 0.1  # measured: better than .01, .5 and 1
HIDDEN = 1e-30  # the gate of a candidate that is not there


def gated_utility(
    model: Wrapped,
    params: dict,
    rows: Rows,
    prefix: Rows,
    candidates: jax.Array,
    recent: jax.Array,
    tail: jax.Array,
    weights: jax.Array | None = None,
    epsilon: float | jax.Array = EPSILON,
) -> jax.Array:
    """Utility of candidate blocks, nats over the whole tail.

    Args:
      rows: LOD0 rows of the history, [L, B, T, K, H].
      prefix: [L, 1, P, K, H].
      candidates: [B, m] block indices in time order, labelled together.
      recent: [r] block indices that are simply shown, after the candidates.
      tail: [B, C + 1] tokens; the first is read only.
      weights: [C], how much each predicted token counts; None for all 1. Cross-fitting chooses
        on the odd tokens and scores on the even ones.
      epsilon: the gate, of all candidates or of each [B, m].

    Returns:
      [B, m]: > 0 where showing the block lowers the NLL.
    """
    context, start, gated = _gathered(model, rows, prefix, candidates, recent)
    ungated = context.bias.shape[1] - gated

    def total(gates):  # [B, m]
        log_gates = jnp.repeat(jnp.log(gates), model.gist.block, axis=1)
        p = prefix.k.shape[2]
        bias = jnp.pad(log_gates, ((0, 0), (p, ungated - p)))
        nll = tail_nll(model, params, tail, context._replace(bias=bias), start)
        return jnp.sum(nll if weights is None else nll * weights)

    return -jax.grad(total)(jnp.full(candidates.shape, epsilon))


def _gathered(model, rows, prefix, candidates, recent):
    """The context of some blocks, packed: prefix, candidates, recent; and the gated rows' count."""
    b, k = candidates.shape[0], model.gist.block
    blocks = jnp.concatenate(
        [candidates, jnp.broadcast_to(recent, (b, recent.shape[0]))], axis=1
    )
    where = (blocks[..., None] * k + jnp.arange(k)).reshape(b, -1)  # [B, R]
    taken = [jnp.take_along_axis(x, where[None, :, :, None, None], axis=2) for x in rows]
    return *plain_context(prefix, Rows(*taken)), candidates.shape[1] * k


def label_history(
    model: Wrapped,
    params: dict,
    rows: Rows,
    prefix: Rows,
    tail: jax.Array,
    recent: int,
    sets: int,
    key: jax.Array,
    first: jax.Array | int = 0,
) -> jax.Array:
    """Utility of every block before the recent ones, labelled in random sets.

    Args:
      rows: LOD0 rows of the history, [L, B, T, K, H].
      recent: blocks at the end that are always shown.
      sets: the candidates are dealt into this many sets of equal size.
      first: [B], the block with which each history begins; what is before it is not there.

    Returns:
      [B, T / K_1 - recent], nats over the tail; 0 for what is not there.
    """
    b = tail.shape[0]
    blocks = rows.k.shape[2] // model.gist.block
    candidates = blocks - recent
    size = candidates // sets
    if size * sets != candidates:
        raise ValueError(f"{candidates} candidate blocks cannot be dealt into {sets} equal sets")
    dealt = jax.vmap(lambda k: jax.random.permutation(k, candidates))(jax.random.split(key, b))
    dealt = jnp.sort(dealt.reshape(b, sets, size), axis=-1)
    first = jnp.broadcast_to(first, b)[:, None]

    def one(chosen):  # [B, size]
        last, there = jnp.arange(candidates, blocks), chosen >= first
        of = model, params, rows, prefix, chosen, last, tail
        found = gated_utility(*of, epsilon=jnp.where(there, EPSILON, HIDDEN))
        return jnp.where(there, found, 0.0)

    utility = jax.lax.map(one, dealt.swapaxes(0, 1)).swapaxes(0, 1)  # [B, sets, size]
    where = dealt.reshape(b, candidates)
    return jnp.zeros((b, candidates)).at[jnp.arange(b)[:, None], where].set(
        utility.reshape(b, candidates)
    )
