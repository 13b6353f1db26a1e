"""The device's part of a session: rows into the buffer, tokens behind it, heads merged.

Every function is compiled once per configuration; nothing here depends on the history's length.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models import merger as merging
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows, logits, token_hits, token_nll
from mctx.models.router import Routing, route, static_worth
from mctx.models.wrapped import Wrapped, gist_rows, read
from mctx.runtime.sampling import Sampling, draw


class Buffer(NamedTuple):
    """What stands before the tail, for every head.

    Attributes:
      prefix: [L, 1, P, K, h], the shared prefix's rows.
      rows: [L, H, R, K, h], unrotated; positions: [H, R]; count: [H], the valid prefix.
    """

    prefix: Rows
    rows: Rows
    positions: jax.Array
    count: jax.Array


class Tail(NamedTuple):
    """Tokens read since the last refocus, by the heads that the router chose.

    Attributes:
      rows: [L, k, T, K, h]; length: []; last: [D], merged hidden state of the last token read.
      heads, gate: [k], the routing.
    """

    rows: Rows
    length: jax.Array
    last: jax.Array
    heads: jax.Array
    gate: jax.Array


def empty_rows(model: Wrapped, heads: int, length: int) -> Rows:
    c = model.base
    shape = (c.n_layers, heads, length, c.n_kv_heads, c.head_dim)
    dtype = jnp.dtype(model.dtype)
    return Rows(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


@functools.partial(jax.jit, donate_argnums=0)
def move_rows(rows: Rows, head, to, source) -> Rows:
    """Copies rows within one head's buffer; `to` past the end is dropped: [m], [m]."""
    return Rows(
        *(x.at[:, head, to].set(x[:, head, source], mode="drop") for x in rows)
    )


@functools.partial(jax.jit, donate_argnums=0)
def write_rows(rows: Rows, head, to, new: Rows) -> Rows:
    """Writes rows [L, m, K, h] into one head's buffer; `to` past the end is dropped."""
    return Rows(
        *(
            x.at[:, head, to].set(n.astype(x.dtype), mode="drop")
            for x, n in zip(rows, new, strict=True)
        )
    )


@functools.partial(jax.jit, donate_argnums=0)
def write_blocks(rows: Rows, head, to, blocks: list) -> Rows:
    """As `write_rows`, of blocks that come apart: pairs of keys and values [L, K_1, K, h]."""
    joined = Rows(*(jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)))
    return write_rows(rows, head, to, joined)


@functools.partial(jax.jit, static_argnums=0)
def rows_of_gists(model: Wrapped, params: dict, gists: jax.Array) -> Rows:
    """[m, slots, W] -> [L, m·slots, K, h]."""
    return Rows(*(x[:, 0] for x in gist_rows(model, params, gists[None])))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def extend(
    model: Wrapped,
    learned: bool,
    params: dict,
    buffer: Buffer,
    tail: Tail,
    tokens: jax.Array,
    count: jax.Array,
    prefix_bias: jax.Array,
) -> tuple[Tail, jax.Array]:
    """Reads tokens behind the working contexts and the tail.

    Args:
      learned: merge by the learned merger, or average.
      tokens: [C], of which the first `count` are real.
      prefix_bias: [], 0, or `NEGATIVE` to hide the prefix (the plain recent-window baseline).

    Returns:
      The longer tail, and [C]: NLL of each token given all before it, padding included.
    """
    before = tail.last
    tail, merged = _extended(model, learned, params, buffer, tail, tokens, count, prefix_bias)
    known = jnp.concatenate([before[None], merged[:-1].astype(jnp.float32)])
    return tail, _nll(params, known, tokens)


def _extended(model, learned, params, buffer, tail, tokens, count, prefix_bias):
    """The tail with tokens [C] read behind it, and their merged hidden states [C, D]."""
    hidden, rows = _read_behind(model, params, buffer, tail, tokens, prefix_bias)
    merged = _merge(model, learned, params, hidden, tail.gate)  # [C, D]
    own = jnp.arange(tokens.shape[0])
    where = jnp.where(own < count, tail.length + own, tail.rows.k.shape[2])  # padding is dropped
    kept = Rows(
        *(
            old.at[:, :, where].set(new.astype(old.dtype), mode="drop")
            for old, new in zip(tail.rows, rows, strict=True)
        )
    )
    last = merged[count - 1].astype(jnp.float32)
    return Tail(kept, tail.length + count, last, tail.heads, tail.gate), merged


class Said(NamedTuple):
    """One token that was drawn, and read: still on the device.

    Attributes:
      token: []; nll: [1], of it; last: [D], the tail's `last` with it.
    """

    token: jax.Array
    nll: jax.Array
    last: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def say(
    model: Wrapped,
    learned: bool,
    kind: str,
    params: dict,
    buffer: Buffer,
    rows: Rows,
    tail: Tail,
    key: jax.Array,
    number: jax.Array,
    settings: tuple,
    prefix_bias: jax.Array,
) -> tuple[Tail, Said]:
    """Draws the token that follows the last one read, and reads it: the one step of decoding.

    Args:
      rows: the tail's, which are used up; `tail` comes without them, and stays.
      key, number: the seed's key, and how many tokens it has drawn before this one.
      kind, settings: `Sampling.kind`, and temperature, top_k and top_p.
    """
    # In the model's own type: else the head would be converted at every step.
    scores = logits(params["base"], tail.last.astype(model.dtype))
    token = draw(kind, jax.random.fold_in(key, number), scores, *settings).astype(jnp.int32)
    tail, _ = _extended(
        model, learned, params, buffer, tail._replace(rows=rows), token[None], 1, prefix_bias
    )
    nll = jax.nn.logsumexp(scores) - scores[token]
    return tail, Said(token, nll[None], tail.last)


@functools.partial(jax.jit, static_argnums=(0, 1))
def peek(model, learned, params, buffer, tail, tokens, prefix_bias) -> jax.Array:
    """NLL of tokens[1:] read behind the working contexts, leaving everything as it was: [C - 1]."""
    merged = _merged_behind(model, learned, params, buffer, tail, tokens, prefix_bias)
    return _nll(params, merged[:-1], tokens[1:])


@functools.partial(jax.jit, static_argnums=(0, 1))
def judge(
    model, learned, params, buffer, tail, tokens, prefix_bias
) -> tuple[jax.Array, jax.Array]:
    """As `peek`, and whether each token is the likeliest one, as greedy decoding would say it."""
    merged = _merged_behind(model, learned, params, buffer, tail, tokens, prefix_bias)
    hits = token_hits(params["base"], merged[None, :-1], tokens[None, 1:])[0]
    return _nll(params, merged[:-1], tokens[1:]), hits


def _merged_behind(model, learned, params, buffer, tail, tokens, prefix_bias):
    hidden, _ = _read_behind(model, params, buffer, tail, tokens, prefix_bias)
    return _merge(model, learned, params, hidden, tail.gate)


def _nll(params, hidden, targets):
    return token_nll(params["base"], hidden[None], targets[None])[0]


def _read_behind(model, params, buffer, tail, tokens, prefix_bias):
    """Hidden states [k, C, D] and rows [L, k, C, K, h] of tokens, one batch row a chosen head."""
    k, c = tail.heads.shape[0], tokens.shape[0]
    prefix = buffer.prefix
    p, r, t = prefix.k.shape[2], buffer.positions.shape[1], tail.rows.k.shape[2]
    rows = Rows(
        *(
            jnp.concatenate(
                [jnp.broadcast_to(a, (a.shape[0], k, *a.shape[2:])), b[:, tail.heads], d], axis=2
            )
            for a, b, d in zip(prefix, buffer.rows, tail.rows, strict=True)
        )
    )
    count = buffer.count[tail.heads][:, None]  # [k, 1]
    positions = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.arange(p), (k, p)),
            p + buffer.positions[tail.heads],
            p + count + jnp.arange(t),
        ],
        axis=1,
    )
    seen = jnp.concatenate(
        [jnp.arange(r) < count, jnp.broadcast_to(jnp.arange(t) < tail.length, (k, t))], axis=1
    )
    bias = jnp.where(seen, 0.0, NEGATIVE)
    bias = jnp.concatenate([jnp.broadcast_to(prefix_bias, (k, p)), bias], axis=1)
    own = p + count + tail.length + jnp.arange(c)
    out = read(
        model, params, jnp.broadcast_to(tokens, (k, c)), own, Context(rows, positions, bias)
    )
    return out.hidden, out.rows


def _merge(model, learned, params, hidden, gate):
    """[k, C, D] -> [C, D]."""
    hidden = hidden[:, None]
    weights = merging.average(hidden)
    if learned:
        weights = model.merger.apply({"params": params["mof"]["merger"]}, hidden, gate[None])
    return merging.merge(hidden, weights)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def routed(
    model: Wrapped, router: str, top: int, params: dict, query: jax.Array, stats: jax.Array
) -> Routing:
    """The heads to run: query [L + 1, Q, D], stats [H, STATISTICS] -> Routing of [k], [k]."""
    worth = static_worth(1, len(stats))
    if router == "utility":
        worth = stats[None, :, 0]
    if router == "learned":
        variables = {"params": params["mof"]["router"]}
        worth = model.router.apply(variables, query[:, None], stats[None])
    chosen = route(worth, top)
    return Routing(chosen.heads[0], chosen.gate[0])


@jax.jit
def next_logits(base: dict, last: jax.Array) -> jax.Array:
    """[D] -> [V], of the token after the last one read."""
    return logits(base, last)


def drawn_from(logits: jax.Array, key: jax.Array, number, sampling: Sampling) -> jax.Array:
    """The token that `say` would draw from logits [V]."""
    return _drawn_from(sampling.kind, logits, key, number, settings_of(sampling))


def settings_of(sampling: Sampling) -> tuple:
    """For `say`: what may change without compiling anew."""
    return np.float32(sampling.temperature), np.int32(sampling.top_k), np.float32(sampling.top_p)


@functools.partial(jax.jit, static_argnums=0)
def _drawn_from(kind, logits, key, number, settings):
    return draw(kind, jax.random.fold_in(key, number), logits, *settings)
