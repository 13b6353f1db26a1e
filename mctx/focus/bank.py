"""A bank: every node of a short history, with what the base would read for it, in memory.

Training and evaluation choose among the rows of a bank by mask: showing a node is letting its rows
be seen, so any layout, any gate and any gradient through them cost one attention call of fixed
shape. The runtime gathers the same rows into a buffer instead; both read the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.layout import FocusConfig, Layout
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows
from mctx.models.gistnet import GistConfig
from mctx.models.wrapped import Wrapped, gist_rows, prefix_rows, read_windows


def focus_for(gist: GistConfig, **settings) -> FocusConfig:
    """The focus settings that fit a GistNet: its fanouts, what its gists cost, and which levels
    the base can read; levels not trained yet are silent.

    `show` may name the first levels only; those past its end are as its last, so that
    (True, False) shows tokens alone at any depth.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    readable = tuple(level <= gist.trained for level in range(gist.levels + 1))
    show = settings.pop("show", None) or readable
    if len(show) > len(readable):
        raise UserError(f"show names {len(show)} levels, but this tree has {len(readable)}.")
    show += show[-1:] * (len(readable) - len(show))
    return FocusConfig(
        fanouts=gist.fanouts,
        costs=(gist.block, *gist.entries),
        show=tuple(a and b for a, b in zip(show, readable, strict=True)),
        **settings,
    )


@dataclasses.dataclass(frozen=True)
class BankShape:
    """Where each row of a bank belongs. R rows and N nodes, level by level, LOD0 first."""

    gist: GistConfig
    blocks: int

    def counts(self) -> list[int]:
        """Nodes of each level, LOD0 first; only complete ones."""
        return [int(self.blocks // span) for span in self.spans]

    @functools.cached_property
    def node_level(self) -> np.ndarray:  # [N]
        return np.repeat(np.arange(self.gist.levels + 1), self.counts()).astype(np.int32)

    @functools.cached_property
    def node_index(self) -> np.ndarray:  # [N]
        return np.concatenate([np.arange(n) for n in self.counts()]).astype(np.int32)

    @functools.cached_property
    def spans(self) -> np.ndarray:  # [levels + 1], blocks
        levels = range(self.gist.levels + 1)
        return np.array([self.gist.span(level) // self.gist.block for level in levels])

    @functools.cached_property
    def node_block(self) -> np.ndarray:  # [N], the first block that the node covers
        return self.node_index * self.spans[self.node_level]

    @functools.cached_property
    def first_node(self) -> np.ndarray:  # [levels + 1]
        return np.cumsum([0, *self.counts()])[:-1].astype(np.int32)

    @functools.cached_property
    def row_node(self) -> np.ndarray:  # [R]
        cost = np.array((self.gist.block, *self.gist.entries))[self.node_level]
        return np.repeat(np.arange(len(cost)), cost).astype(np.int32)

    @functools.cached_property
    def time_order(self) -> np.ndarray:
        """Rows sorted by the start of what they cover, then as they stand within their node."""
        return np.argsort(self.node_block[self.row_node], kind="stable").astype(np.int32)


class Bank(NamedTuple):
    """Attributes:
    rows: [L, B, R, K, H] in the order of `BankShape`.
    gists: per level from LOD1, [B, n_l, slots, W].
    states: [L + 1, B, T, D], the window states of the history.
    prefix: [L, 1, P, K, H].
    """

    rows: Rows
    gists: list[jax.Array]
    states: jax.Array
    prefix: Rows


def read_history(model: Wrapped, params: dict, tokens: jax.Array) -> tuple[Rows, jax.Array, Rows]:
    """The base's part of a bank, which carries no gradient: rows, states and prefix rows."""
    rows, states = read_windows(model, params, tokens)
    return jax.lax.stop_gradient((rows, states, prefix_rows(model, params)))


def make_bank(model: Wrapped, params: dict, tokens: jax.Array) -> Bank:
    """Reads a history of whole windows and makes every complete node of it.

    Args:
      tokens: [B, T], T a multiple of the window and of every fanout's span that should be whole.
    """
    rows, states, prefix = read_history(model, params, tokens)
    gists = complete_gists(model, params, states, rows)
    emitted = [gist_rows(model, params, g) for g in gists if g.shape[1]]
    joined = [jnp.concatenate(xs, axis=2) for xs in zip(rows, *emitted, strict=True)]
    return Bank(Rows(*joined), gists, states, prefix)


def complete_gists(
    model: Wrapped, params: dict, states: jax.Array, rows: Rows
) -> list[jax.Array]:
    """Gists of every complete node, LOD1 first: levels may be empty.

    Args:
      states: [L + 1, B, T, D]. rows: of [L, B, T or more, K, H], those of tokens first.
    """
    apply = functools.partial(model.gistnet.apply, {"params": params["gistnet"]})
    own = Rows(*(x[:, :, : states.shape[2]] for x in rows))
    gists = [apply(states, own, method="blocks")]
    for level in range(2, model.gist.levels + 1):
        below = gists[-1]
        whole = below.shape[1] // model.gist.fanouts[level - 1] * model.gist.fanouts[level - 1]
        gists.append(apply(level, below[:, :whole], method="ascend"))
    return gists


def shown_nodes(shape: BankShape, layout: Layout) -> jax.Array:
    """[..., n] of a layout -> [..., N], which nodes of the bank it shows."""
    nodes = len(shape.node_level)
    live = (jnp.arange(layout.level.shape[-1]) < layout.count[..., None]) & layout.shown
    where = jnp.asarray(shape.first_node)[layout.level] + layout.index
    where = jnp.where(live, where, nodes)

    def scatter(ids):
        return jnp.zeros(nodes, bool).at[ids].set(True, mode="drop")

    return jnp.vectorize(scatter, signature="(n)->(m)")(where)


def context_of(
    shape: BankShape, bank: Bank, shown: jax.Array, gate: jax.Array | None = None
) -> tuple[Context, jax.Array]:
    """The working context that shows these nodes, at contiguous positions (design: Positions).

    Args:
      shown: [B, N].
      gate: [B, N], log-gates of the shown nodes; None for none.

    Returns:
      The context, prefix first, and [B], the position at which the tail continues.
    """
    prefix = bank.prefix.k.shape[2]
    visible = shown[:, shape.row_node]  # [B, R]
    order = shape.time_order
    rank = jnp.cumsum(visible[:, order], axis=1) - 1
    positions = jnp.zeros_like(rank).at[:, order].set(rank)
    bias = jnp.zeros_like(rank, jnp.float32) if gate is None else gate[:, shape.row_node]
    bias = jnp.where(visible, bias, NEGATIVE)
    b = visible.shape[0]
    context = Context(
        Rows(
            *(
                jnp.concatenate([jnp.broadcast_to(p, (p.shape[0], b, *p.shape[2:])), r], axis=2)
                for p, r in zip(bank.prefix, bank.rows, strict=True)
            )
        ),
        jnp.concatenate(
            [jnp.broadcast_to(jnp.arange(prefix), (b, prefix)), prefix + positions], axis=1
        ),
        jnp.concatenate([jnp.zeros((b, prefix)), bias], axis=1),
    )
    return context, prefix + jnp.sum(visible, axis=1)


def plain_context(prefix: Rows, rows: Rows) -> tuple[Context, jax.Array]:
    """The context that shows rows [L, B, R, K, H] and nothing else behind the prefix
    [L, 1, P, K, H]; and [B], the position at which a tail continues."""
    b = rows.k.shape[1]
    shared = (jnp.broadcast_to(x, (x.shape[0], b, *x.shape[2:])) for x in prefix)
    both = Rows(*(jnp.concatenate(pair, axis=2) for pair in zip(shared, rows, strict=True)))
    entries = both.k.shape[2]
    places = jnp.broadcast_to(jnp.arange(entries), (b, entries))
    return Context(both, places, jnp.zeros((b, entries))), jnp.full(b, entries)


def packed_context(
    shape: BankShape, bank: Bank, shown: jax.Array, capacity: int
) -> tuple[Context, jax.Array]:
    """As `context_of`, of the shown rows alone: where few are shown, much less is read.

    Args:
      shown: [B, N], of which no row of the batch may show more than `capacity` rows of the bank.
    """
    b, prefix = shown.shape[0], bank.prefix.k.shape[2]
    order = shape.time_order
    visible = shown[:, shape.row_node[order]]  # [B, R]
    rank = jnp.where(visible, jnp.cumsum(visible, axis=1) - 1, capacity)
    packed = jnp.zeros((b, capacity), jnp.int32)
    packed = packed.at[jnp.arange(b)[:, None], rank].set(order, mode="drop")
    count = jnp.sum(visible, axis=1)
    hidden = jnp.where(jnp.arange(capacity) < count[:, None], 0.0, NEGATIVE)

    def join(before, rows):
        before = jnp.broadcast_to(before, (before.shape[0], b, *before.shape[2:]))
        rows = jnp.take_along_axis(rows, packed[None, :, :, None, None], axis=2)
        return jnp.concatenate([before, rows], axis=2)

    context = Context(
        Rows(*(join(p, r) for p, r in zip(bank.prefix, bank.rows, strict=True))),
        jnp.broadcast_to(jnp.arange(prefix + capacity), (b, prefix + capacity)),
        jnp.pad(hidden, ((0, 0), (prefix, 0))),
    )
    return context, prefix + count
