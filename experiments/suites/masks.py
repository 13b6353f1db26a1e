"""NLL of a continuation behind the nodes of a bank that masks show: gists and lens share it."""

import jax

from mctx.focus.bank import Bank, BankShape, context_of
from mctx.models.wrapped import Wrapped, tail_nll


def masked_nll(
    model: Wrapped,
    params: dict,
    shape: BankShape,
    bank: Bank,
    tail: jax.Array,
    masks: jax.Array,
    scored: int,
) -> jax.Array:
    """Mean NLL of the last `scored` tokens of tails [B, t] under each mask [S, B, N]: [B, S]."""

    def one(mask):
        nll = tail_nll(model, params, tail, *context_of(shape, bank, mask))
        return nll[:, -scored:].mean(axis=1)

    return jax.lax.map(one, masks).T
