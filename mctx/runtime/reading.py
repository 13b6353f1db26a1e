"""The device's part of a session: tokens read behind its rows, and heads merged.

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
from mctx.models.base import Ready, Rows, logits, rotated, token_hits, token_nll
from mctx.models.router import Routing, route, static_worth
from mctx.models.wrapped import Wrapped, gist_rows, read
from mctx.runtime.rows import Buffer, Tail, TailRows
from mctx.runtime.sampling import Sampling, draw


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
    before, one = tail.last, buffer._replace(count=buffer.count[None])
    behind = one, _as_lane(tail), tokens[None], count[None]
    tails, merged = _extended(model, learned, params, *behind, prefix_bias)
    known = jnp.concatenate([before[None], merged[0, :-1].astype(jnp.float32)])
    return _by_field(jnp.squeeze, tails), _nll(params, known, tokens)


def _extended(model, learned, params, buffer, tails, tokens, counts, prefix_bias):
    """The tails of S lanes with tokens [S, C] read behind them, of which the first `counts` [S]
    are real; and all of their merged hidden states [S, C, D]."""
    hidden, rows = _read_behind(model, params, buffer, tails, tokens, prefix_bias)
    merged = _merge(model, learned, params, hidden, tails.gate)
    own = jnp.arange(tokens.shape[1])
    room = tails.rows.k.shape[3]  # what is put there is dropped, and padding is
    where = jnp.where(own < counts[:, None], tails.length[:, None] + own, room)  # [S, C]

    def put(old, new, where):  # [L, k, T, K, h], [L, k, C, K, h]
        return old.at[:, :, where].set(new.astype(old.dtype), mode="drop")

    put = jax.vmap(put, in_axes=(1, 1, 0), out_axes=1)
    kept = TailRows(*(put(*pair, where) for pair in zip(tails.rows, rows, strict=True)))
    newest = jnp.take_along_axis(merged, counts[:, None, None] - 1, axis=1, mode="clip")[:, 0]
    last = jnp.where(counts[:, None] > 0, newest.astype(jnp.float32), tails.last)
    return Tail(kept, tails.length + counts, last, tails.heads, tails.gate), merged


class Draws(NamedTuple):
    """What the lanes of one step of decoding draw by.

    Attributes:
      keys: [S], of the seeds; numbers: [S], how many tokens each has drawn before this one.
      settings: temperature, top_k and top_p, [S] each.
      active: [S] bool; the others draw nothing and stay as they are.
    """

    keys: jax.Array
    numbers: jax.Array
    settings: tuple
    active: jax.Array


class Said(NamedTuple):
    """A token of every lane that was drawn, and read: still on the device.

    Attributes:
      token: [S]; nll: [S], of them; last: [S, D], the tails' `last` with them.
    """

    token: jax.Array
    nll: jax.Array
    last: jax.Array


SIDE_BY_SIDE = Tail(rows=1, length=0, last=0, heads=0, gate=0)  # where each field has its lanes


@jax.jit
def side_by_side(tails: list[Tail]) -> Tail:
    """Tails of several lanes in one: rows [L, S, k, T, K, h], the rest [S, …]."""
    return _by_field(lambda *xs: jnp.stack(xs[:-1], xs[-1]), *tails)


@jax.jit
def tail_of(tails: Tail, lane) -> Tail:
    """One lane's tail, in arrays of its own."""

    def one(x, axis):
        return jax.lax.dynamic_index_in_dim(x, lane, axis, keepdims=False)

    return _by_field(one, tails)


@functools.partial(jax.jit, donate_argnums=0)
def with_tail(tails: Tail, lane, tail: Tail) -> Tail:
    """`tails` with another of one lane."""

    def put(x, new, axis):
        return jax.lax.dynamic_update_index_in_dim(x, new, lane, axis)

    return _by_field(put, tails, tail)


@jax.jit
def tokens_of(said: list[jax.Array], lane) -> jax.Array:
    """What one lane has said in some steps: tokens [S] of each -> [steps]."""
    return jnp.stack(said)[:, lane]


def _as_lane(tail: Tail) -> Tail:
    """The tail of the only lane."""
    return _by_field(jnp.expand_dims, tail)


def _by_field(of, *tails):
    """`of(*arrays, axis of the lanes)` of every array in some tails."""
    fields = zip(SIDE_BY_SIDE, *tails, strict=True)
    return Tail(
        *(jax.tree.map(lambda *xs, axis=axis: of(*xs, axis), *parts) for axis, *parts in fields)
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def say(
    model: Wrapped,
    learned: bool,
    kind: str,
    params: dict,
    buffer: Buffer,
    rows: TailRows,
    tails: Tail,
    draws: Draws,
    prefix_bias: jax.Array,
) -> tuple[Tail, Said]:
    """Draws in every lane the token that follows the last one read, and reads it: the one step of
    decoding.

    Args:
      buffer: of all lanes, see `Lanes.whole`.
      rows: the tails', which are used up; `tails` comes without them, and stays.
      kind: `Sampling.kind`, of all.
    """

    def one(last, key, number, settings):
        # In the model's own type: else the head would be converted at every step.
        scores = logits(params["base"], last.astype(model.dtype))
        token = draw(kind, jax.random.fold_in(key, number), scores, *settings).astype(jnp.int32)
        return token, jax.nn.logsumexp(scores) - scores[token]

    token, nll = jax.vmap(one)(tails.last, draws.keys, draws.numbers, draws.settings)
    behind = buffer, tails._replace(rows=rows), token[:, None], draws.active.astype(jnp.int32)
    tails, _ = _extended(model, learned, params, *behind, prefix_bias)
    return tails, Said(token, nll, tails.last)


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
    """Hidden states [C, D] of one lane's tokens."""
    one, tails = buffer._replace(count=buffer.count[None]), _as_lane(tail)
    hidden, _ = _read_behind(model, params, one, tails, tokens[None], prefix_bias)
    return _merge(model, learned, params, hidden, tails.gate)[0]


def _nll(params, hidden, targets):
    return token_nll(params["base"], hidden[None], targets[None])[0]


def _read_behind(model, params, buffer, tails, tokens, prefix_bias):
    """Tokens [S, C] of S lanes behind what their running heads hold, one batch row a head.

    Returns:
      Hidden states [k, S, C, D] and rows [L, S, k, C, K, h].
    """
    (s, k), c = buffer.count.shape, tokens.shape[1]
    tail = TailRows(*(x.reshape(len(x), s * k, *x.shape[3:]) for x in tails.rows))
    p, r, t = (x.shape[2] for x in (buffer.prefix.k, buffer.rows.k, tail.k))
    count, length = buffer.count.reshape(-1, 1), jnp.repeat(tails.length, k)[:, None]  # [S·k, 1]
    seen = jnp.concatenate([jnp.arange(r) < count, jnp.arange(t) < length], axis=1)
    bias = jnp.where(seen, 0.0, NEGATIVE)
    bias = jnp.concatenate([jnp.broadcast_to(prefix_bias, (s * k, p)), bias], axis=1)
    parts = buffer.prefix, buffer.rows, Rows(tail.rotated, tail.v)
    own = p + count + length + jnp.arange(c)  # where they stand: [S·k, C]
    out = read(model, params, jnp.repeat(tokens, k, axis=0), own, Ready(parts, bias))
    rows = *out.rows, rotated(model.base, out.rows.k, own)
    rows = TailRows(*(x.reshape(len(x), s, k, *x.shape[2:]) for x in rows))
    return out.hidden.reshape(s, k, c, -1).swapaxes(0, 1), rows


def _merge(model, learned, params, hidden, gate):
    """[k, S, C, D] and [S, k] -> [S, C, D]."""
    weights = merging.average(hidden)
    if learned:
        weights = model.merger.apply({"params": params["mof"]["merger"]}, hidden, gate)
    return merging.merge(hidden, weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def routed(
    model: Wrapped, router: str, top: int, params: dict, query: jax.Array, stats: jax.Array
) -> Routing:
    """The heads to run, the first first: query [L + 1, Q, D], stats [H, STATISTICS] -> [k], [k]."""
    worth = stats[None, :, 0]
    if router == "learned":
        variables = {"params": params["mof"]["router"]}
        worth = model.router.apply(variables, query[:, None], stats[None])
    chosen = route(worth, top)
    order = jnp.argsort(chosen.heads[0])  # so that all heads stand as they lie
    return Routing(chosen.heads[0][order], chosen.gate[0][order])


@functools.cache
def first_heads(top: int) -> Routing:
    """As `routed`, of the static router: always the same, and on the host."""
    with jax.ensure_compile_time_eval():
        worth = np.asarray(static_worth(1, top))
    return Routing(np.arange(top, dtype=np.int32), worth[0])


@jax.jit
def next_logits(base: dict, last: jax.Array) -> jax.Array:
    """[D] -> [V], of the token after the last one read."""
    return logits(base, last)


def drawn_from(logits: jax.Array, key: jax.Array, number, sampling: Sampling) -> jax.Array:
    """The token that `say` would draw from logits [V]."""
    return _drawn_from(sampling.kind, logits, key, number, settings_of(sampling))


def settings_of(sampling: Sampling, kind: str = "") -> tuple:
    """For `say`: what may change without compiling anew; `kind`: the program's, if not its own."""
    if kind == "cut" and sampling.kind == "greedy":
        return np.float32(1.0), np.int32(1), np.float32(1.0)  # one token to choose from
    return np.float32(sampling.temperature), np.int32(sampling.top_k), np.float32(sampling.top_p)


@functools.partial(jax.jit, static_argnums=0)
def _drawn_from(kind, logits, key, number, settings):
    return draw(kind, jax.random.fold_in(key, number), logits, *settings)
