"""NLL of a continuation behind the nodes of a bank that masks show."""

import functools

import jax

from mctx.focus.bank import Bank, BankShape, context_of, packed_context
from mctx.models.base import token_nll
from mctx.models.wrapped import Wrapped, read_behind


def masked_nll(
    model: Wrapped,
    params: dict,
    shape: BankShape,
    bank: Bank,
    tail: jax.Array,
    masks: jax.Array,
    scored: int,
    capacity: int | None = None,
) -> jax.Array:
    """NLL of the last `scored` tokens of tails [B, t] under each mask [S, B, N]: [B, S, scored].

    `capacity`: rows that no mask shows more of, where that is few; None: all may be shown.
    """
    packed = functools.partial(packed_context, capacity=capacity)
    shown = context_of if capacity is None else packed

    def one(mask):
        hidden = read_behind(model, params, tail[:, :-1], *shown(shape, bank, mask)).hidden
        return token_nll(params["base"], hidden[:, -scored:], tail[:, -scored:])

    return jax.lax.map(one, masks).swapaxes(0, 1)
