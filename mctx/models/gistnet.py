"""GistNet: children in, gist out, level upon level; and what the base reads for a gist.

A gist is pooled from the frozen base's hidden states (LOD1) or from the gists below (LOD2 and up)
by a small bidirectional transformer; its trunk is shared by the levels, and every level has its
own way in, pooling and way out, so that LOD2 is never LOD1 applied to itself (design: Ingest and
GistNet). With `pools="rows"` it is a choice of its children's keys and values besides: the base
reads the rows of every eighth token better than the means of eight (RESULTS.md), so a slot starts
as one child's rows and learns, layer by layer, whose to keep.

A gist enters the base as keys and values at each layer (`inject="kv"`), or as one input entry which
the base reads alone behind its prefix (`inject="input"`); either way the rows are a function of the
gist and nothing else (law 8).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.errors import UserError
from mctx.models.base import BaseConfig, Rows
from mctx.models.blocks import AllLayers, CrossAttention, FeedForward, LayerMix

PACE = 1 / 32  # of the maps between rows and gists: Adam's steps are as large for small weights,
# and two thousand that move together undo in ten steps what they start from.
KEPT = 0.9  # a fresh slot's share of the one child it keeps: all would leave no gradient
POOLS = ("states", "rows")
MIXES = {"sum": LayerMix, "all": AllLayers}


@dataclasses.dataclass(frozen=True)
class GistConfig:
    """Shape of a GistNet.

    Attributes:
      fanouts: K_1, K_2, …: children per node, level by level.
      trained: levels the base has learned to read; deeper gists guide the lens only.
      slots: gist vectors (and entries) per node.
      width: width of a gist vector.
      inject: 'kv' or 'input'.
      pools: what a gist is made of: 'states', or 'rows', which it keeps some of besides.
      mix: how the base's layers come together: 'sum' is one gated sum of them (cheaper); 'all'
        gives every layer a projection of its own.
      refine: feed-forward layers that work on a gist once it is pooled, where a token's price is
        paid once a block.
    """

    fanouts: tuple[int, ...] = (32, 32)
    trained: int = 2
    slots: int = 1
    width: int = 256
    d_model: int = 256
    d_ff: int = 512
    n_layers: int = 2
    n_heads: int = 4
    inject: str = "kv"
    pools: str = "states"
    mix: str = "sum"
    refine: int = 0

    def __post_init__(self):
        if self.pools not in POOLS:
            raise UserError(f"gists are made of {' or '.join(POOLS)}, not of '{self.pools}'.")
        if self.keeps and self.inject != "kv":
            raise UserError(
                "gists that keep rows enter as rows: set inject='kv', or pools='states'."
            )

    @property
    def keeps(self) -> bool:
        """Whether a gist keeps rows of its children."""
        return self.pools == "rows"

    @property
    def levels(self) -> int:
        return len(self.fanouts)

    @property
    def block(self) -> int:
        """Tokens in a block."""
        return self.fanouts[0]

    def span(self, level: int) -> int:
        """Tokens that a node of this level covers."""
        return math.prod(self.fanouts[: max(level, 1)])

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> GistConfig:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class Pool(nn.Module):
    """What is a level's own: the way in, the pooling weights, the way out.

    Attributes:
      kept: (layers, key/value heads) of the rows that every slot keeps a choice of; () for none.
    """

    config: GistConfig
    children: int
    kept: tuple[int, ...] = ()

    def setup(self):
        c = self.config
        dense = nn.Dense
        self.enter = dense(c.d_model, use_bias=False, name="enter")
        self.place = self.param(
            "place", nn.initializers.normal(0.02), (self.children, c.d_model)
        )
        self.score = dense(c.slots * c.n_heads, use_bias=False, name="score")
        # What adds to kept rows begins as nothing.
        scale = {"kernel_init": nn.initializers.zeros} if self.kept else {}
        self.leave = dense(c.width, use_bias=False, name="leave", **scale)
        if self.kept:
            shape = (c.slots, *self.kept)
            zeros = nn.initializers.zeros
            self.keep = nn.DenseGeneral(shape, use_bias=False, kernel_init=zeros, name="keep")
            self.kept_place = self.param("kept_place", _one_child, (self.children, *shape))

    def inward(self, children):
        """[n, C, d] -> [n, C, d_model]."""
        return self.enter(children) + self.place.astype(children.dtype)

    def outward(self, x):
        """[n, C, d_model] -> [n, slots, width]: attention pooling, one softmax a slot and head."""
        c = self.config
        n, children, width = x.shape
        weights = self.score(x).reshape(n, children, c.slots, c.n_heads)
        weights = jax.nn.softmax(weights.astype(jnp.float32), axis=1).astype(x.dtype)
        heads = x.reshape(n, children, c.n_heads, width // c.n_heads)
        pooled = jnp.einsum("ncsh,nchd->nshd", weights, heads).reshape(n, c.slots, width)
        return self.leave(pooled)

    def chosen(self, x, rows):
        """A slot's share of every child's rows, in each layer and key/value head on its own.

        x: [n, C, d_model]; rows: [n, C, L, 2, K, H] -> [n, slots, L, 2, K, H].
        """
        weights = jax.nn.softmax(self.keep(x) + self.kept_place, axis=1)  # [n, C, slots, L, K]
        return jnp.einsum("ncslk,ncltkh->nsltkh", weights.astype(rows.dtype), rows)


def _one_child(key, shape, dtype=jnp.float32):
    """Scores [C, slots, L, K] by which a slot keeps, to `KEPT`, the last child of its stretch."""
    del key
    children, slots = shape[:2]
    last = (jnp.arange(slots) + 1) * children // slots - 1
    score = math.log(KEPT / (1 - KEPT) * max(children - 1, 1))
    scores = jnp.zeros((children, slots), dtype).at[last, jnp.arange(slots)].set(score)
    return jnp.broadcast_to(scores[..., None, None], shape)


class GistNet(nn.Module):
    """See the module's docstring. Every method is called through `apply(..., method=...)`."""

    config: GistConfig
    base: BaseConfig

    def setup(self):
        c, b = self.config, self.base
        self.mix_layers = MIXES[c.mix](c.d_model, name="mix")
        kept = (b.n_layers, b.n_kv_heads) if c.keeps else ()
        self.pools = [
            Pool(c, k if level == 0 else k * c.slots, kept, name=f"lod{level + 1}")
            for level, k in enumerate(c.fanouts)
        ]
        if c.keeps:
            self.compress = nn.DenseGeneral(c.width, axis=(-4, -3, -2, -1), name="compress")
        self.attends = [CrossAttention(c.n_heads, name=f"attend{i}") for i in range(c.n_layers)]
        self.feeds = [FeedForward(c.d_ff, name=f"feed{i}") for i in range(c.n_layers)]
        self.refines = [FeedForward(2 * c.width, name=f"refine{i}") for i in range(c.refine)]
        if c.inject == "kv":
            shape = (b.n_layers, 2, b.n_kv_heads, b.head_dim)
            self.to_rows = nn.DenseGeneral(shape, name="rows")
        else:
            self.to_entry = nn.Dense(b.d_model, name="entry")

    def __call__(self, states, rows):
        """Touches every parameter: for `init` only."""
        gists = self.tree(states, rows)
        return [self.emit(g) for g in gists]

    def pool(self, level: int, children: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Children of nodes of `level` to their gists: [n, C, d] -> [n, slots, width].

        `rows`: the children's, [n, C, L, 2, K, H], where gists keep some.
        """
        own = self.pools[level - 1]
        x = own.inward(children)
        for attend, feed in zip(self.attends, self.feeds, strict=True):
            x = feed(attend(x, None))
        gists = own.outward(x)
        if rows is not None:
            gists = gists + self.compress(PACE * own.chosen(x, rows))
        for refine in self.refines:
            gists = refine(gists)
        return gists

    def blocks(self, states: jax.Array, rows: Rows) -> jax.Array:
        """LOD1 gists of whole blocks: [L + 1, B, T, D], [L, B, T, K, H] -> [B, T / K_1, slots, W].
        """
        mixed = self.mix_layers(states)
        b, t, d = mixed.shape
        k = self.config.block
        kept = None
        if self.config.keeps:
            both = jnp.moveaxis(jnp.stack(rows, axis=1), (2, 3), (0, 1))  # [B, T, L, 2, K, H]
            kept = both.reshape(b * t // k, k, *both.shape[2:])
        gists = self.pool(1, mixed.reshape(b * t // k, k, d), kept)
        return gists.reshape(b, t // k, *gists.shape[1:])

    def ascend(self, level: int, gists: jax.Array) -> jax.Array:
        """Gists of level - 1 to gists of level: [B, n, slots, W] -> [B, n / K_l, slots, W]."""
        b, n, slots, width = gists.shape
        k = self.config.fanouts[level - 1]
        children = gists.reshape(b * n // k, k * slots, width)
        out = self.pool(level, children, self.uttered(children) if self.config.keeps else None)
        return out.reshape(b, n // k, slots, width)

    def tree(self, states: jax.Array, rows: Rows) -> list[jax.Array]:
        """All gists of a stretch of whole top-level nodes, one array a level, LOD1 first."""
        gists = [self.blocks(states, rows)]
        for level in range(2, self.config.levels + 1):
            gists.append(self.ascend(level, gists[-1]))
        return gists

    def uttered(self, gists: jax.Array) -> jax.Array:
        """[B, n, width] -> rows [B, n, L, 2, K, H]."""
        return self.to_rows(PACE * gists if self.config.keeps else gists)

    def emit(self, gists: jax.Array) -> Rows | jax.Array:
        """What a gist puts into the base: rows for `kv`, an input entry for `input`.

        [B, n, slots, width] -> Rows of [L, B, n·slots, K, H], or entries [B, n·slots, D].
        """
        b, n, slots, width = gists.shape
        flat = gists.reshape(b, n * slots, width)
        if self.config.inject == "input":
            return self.to_entry(flat)
        rows = jnp.moveaxis(self.uttered(flat), (2, 3), (0, 1))  # [L, 2, B, n·slots, K, H]
        return Rows(rows[:, 0], rows[:, 1])
