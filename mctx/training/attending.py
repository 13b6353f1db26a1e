"""Where a continuation looks: what the choice of rows that a gist keeps is learned from.

The rows that tokens to come will attend to are worth keeping (KVzip, Kim et al. 2025,
arXiv:2505.23416, asks a repetition of the text itself), as far as their values say something. The
base's own attention tells which they were, in every layer and head apart; GistNet learns to tell it
before they come. Which rows are the best is no smooth question, so nothing else teaches it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus.bank import Bank, BankShape, plain_context
from mctx.models import lora
from mctx.models.base import BaseConfig, Read, Rows, rotated
from mctx.models.finder import queries_of
from mctx.models.wrapped import Wrapped, read_behind

NEAR = 1024  # tokens, the last of a history, whose rows are chosen among; or one node


def choice(
    model: Wrapped, shape: BankShape, params: dict, bank: Bank, tails: jax.Array
) -> jax.Array:
    """How far what gists hold their children to be worth is from where the base looks, in nats.

    Of every level, the rows of the level below are looked at by the tokens of a continuation, which
    follow the history's windows up to one of them and have read all that is near of these.

    Args:
      tails: [J, B, T], what follows each of the history's J windows.

    Returns:
      [], the mean over continuations and levels of the divergence between shares of what is read
      and of worth among the children of a node, where nodes count by what is read of them.
    """
    length = shape.blocks * model.gist.block
    rows = jax.lax.stop_gradient(_by_level(shape, bank.rows))
    said = [said_norm(params["base"], x.v) for x in rows[:-1]]  # nothing chooses among the last
    ends = range(length // len(tails), length + 1, length // len(tails))
    of = model, params, bank, rows, said
    return jnp.stack([_apart(*of, *pair) for pair in zip(ends, tails, strict=True)]).mean()


def _apart(model, params, bank, rows, said, end, tail):
    """As `choice`, of one continuation [B, T] of the first `end` tokens."""
    gist, base, near = model.gist, params["base"], min(NEAR, end)
    behind = plain_context(bank.prefix, Rows(*(x[:, :, end - near : end] for x in rows[0])))
    own = jax.lax.stop_gradient(read_behind(model, params, tail, *behind, collect=True))
    apart = []
    for level in range(1, gist.levels + 1):
        children, whole = gist.children[level - 1], end // gist.span(level)
        nodes = min(max(NEAR // gist.span(level), 1), whole)
        if not nodes:
            break
        first, last = (whole - nodes) * children, whole * children
        some = Rows(*(x[:, :, first:last] for x in rows[level - 1]))
        looked = most_attention(model.base, base, own, some, bank.prefix)
        looked = looked * said[level - 1][:, first:last]  # what says nothing is no loss
        if level == 1:
            below = bank.states[:, :, first:last]
        else:
            slots = gist.entries[level - 2]
            below = bank.gists[level - 2][:, first // slots : last // slots]
        of = {"params": params["gistnet"]}, level, below
        worth = model.gistnet.apply(*of, method="worth")  # [B, nodes·children, L, K]
        by_node = (len(tail), nodes, children, *worth.shape[2:])
        looked = jax.lax.stop_gradient(looked)  # who looks learns nothing of what is guessed
        apart.append(_divergence(looked.reshape(by_node), worth.reshape(by_node)))
    return jnp.stack(apart).mean()


def said_norm(params: dict, values: jax.Array) -> jax.Array:
    """How much a value adds to the residual stream where it is all that is attended to: root mean
    square over the query heads that read it, by the base's output projection and what a LoRA adds.

    Args:
      params: of the base. values: [L, B, R, K, H].

    Returns:
      [B, R, L, K], float32.
    """

    def of_layer(layer):  # of a base that is sharded only one layer's weights are gathered at once
        own, values = layer[0], layer[1].astype(jnp.float32)  # values: [B, R, K, H]
        out = lora.kernel(own, "o")  # [N, H, D]
        out = out.reshape(values.shape[2], -1, *out.shape[1:])  # [K, G, H, D]
        gram = jnp.einsum("kghd,kgid->khi", out, out) / out.shape[1]
        return jnp.einsum("brkh,khi,brki->brk", values, gram, values)

    squares = jax.lax.map(of_layer, (params["layers"]["attn"], values))
    return jnp.sqrt(jnp.maximum(squares, 0)).transpose(1, 2, 0, 3)


def most_attention(
    base: BaseConfig, params: dict, tail: Read, rows: Rows, prefix: Rows
) -> jax.Array:
    """The most attention that any token of a continuation pays to each row behind which it stands.

    Args: as of `of_attention`.

    Returns:
      [B, R, L, K], float32; of the query heads of a key/value head, the most of any.
    """
    behind = slice(prefix.k.shape[2], prefix.k.shape[2] + rows.k.shape[2])
    of = base, params, tail, rows, prefix
    most = of_attention(*of, lambda shares: shares[..., behind].max(axis=(2, 3)))
    return most.transpose(1, 3, 0, 2)


def of_attention(
    base: BaseConfig,
    params: dict,
    tail: Read,
    rows: Rows,
    prefix: Rows,
    reduce: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Something of the shares in which each token of a continuation attends to what it sees.

    Args:
      params: of the base. tail: what it made of the continuation [B, T], with its states.
      rows: [L, B, R, K, H], at contiguous positions behind the prefix [L, 1, P, K, H].
      reduce: of one layer's shares, float32 [B, K, G, T, P + R + T].

    Returns:
      [L, ...], of what it returns.
    """
    own = tail.rows.k
    behind = plain_context(prefix, rows)[0].rows.k.astype(own.dtype)
    keys = jnp.concatenate([behind, own], axis=2)  # [L, B, S, K, H]
    (_, b, t), s = own.shape[:3], keys.shape[2]
    places = jnp.broadcast_to(jnp.arange(s), (b, s))
    causal = jnp.arange(s) <= jnp.arange(s - t, s)[:, None]  # [T, S]
    # Layer by layer: of a base that is sharded only one layer's weights are then gathered at once.
    layers = params["layers"], tail.states[:-1]
    asked = jax.lax.map(lambda layer: queries_of(base, *layer), layers)  # [L, B, T, K, G, H]
    flat = asked.reshape(*asked.shape[:3], -1, asked.shape[-1])  # [L, B, T, N, H]
    asked = rotated(base, flat, places[:, s - t :]).reshape(asked.shape)

    def of_layer(layer):
        query, keys = layer  # [B, T, K, G, H], [B, S, K, H]
        logits = jnp.einsum("btkgh,bskh->bkgts", query, keys, preferred_element_type=jnp.float32)
        scale = keys.shape[-1] ** -0.5
        return reduce(jax.nn.softmax(jnp.where(causal, logits * scale, -jnp.inf)))

    return jax.lax.map(of_layer, (asked, rotated(base, keys, places)))


def _divergence(seen: jax.Array, worth: jax.Array) -> jax.Array:
    """KL divergence of worth's shares from those of attention, [B, n, C, L, K] each, over C."""
    total = seen.sum(axis=2, keepdims=True)
    shares = seen / jnp.maximum(total, 1e-9)
    logs = jnp.log(jnp.maximum(shares, 1e-9)) - jax.nn.log_softmax(worth, axis=2)
    return jnp.sum(shares * logs * total) / jnp.sum(total)


def _by_level(shape: BankShape, rows: Rows) -> list[Rows]:
    """Rows of a bank, level by level, LOD0 first."""
    per = np.array((shape.gist.block, *shape.gist.entries))
    ends = np.cumsum(per * shape.counts())
    return [
        Rows(*(x[:, :, end - size : end] for x in rows))
        for end, size in zip(ends, per * shape.counts(), strict=True)
    ]
