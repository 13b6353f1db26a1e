"""GistNet: children in, gist out, level upon level; and what the base reads for a gist.

A gist is pooled from the frozen base's hidden states (LOD1) or from the gists below (LOD2 and up)
by a small bidirectional transformer; its trunk is shared by the levels, and every level has its
own way in, pooling and way out, so that LOD2 is never LOD1 applied to itself (design: Ingest and
GistNet). With `pools="rows"` its slots are the rows of some of its children besides, in every layer
and head those that are worth most to what comes: the base reads kept rows better than any means of
rows (RESULTS.md). What a child is worth is learned from where the base looks
(`mctx.training.attending`); what is pooled from states adds to what is kept.

A gist enters the base as keys and values at each layer (`inject="kv"`), or as one input entry which
the base reads alone behind its prefix (`inject="input"`); either way the rows are a function of the
gist and nothing else (law 8).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.errors import UserError
from mctx.levels import slots_by_level
from mctx.models.base import BaseConfig, Rows
from mctx.models.blocks import AllLayers, CrossAttention, FeedForward, LayerMix

PACE = 1 / 32  # of the maps between rows and codes: Adam's steps are as large for small weights,
# and those that move together undo in ten steps what they start from.
POOLS = ("states", "rows")
MIXES = {"sum": LayerMix, "all": AllLayers}


@dataclasses.dataclass(frozen=True)
class GistConfig:
    """Shape of a GistNet.

    Attributes:
      fanouts: K_1, K_2, …: children per node, level by level.
      trained: levels the base has learned to read; deeper gists guide the lens only.
      slots: gist vectors (and entries) per node; one number, or one for each level from 1.
      width: width of a gist vector.
      inject: 'kv' or 'input'.
      pools: what a gist is made of: 'states', or 'rows', of which it keeps as many as it has slots.
      mix: how the base's layers come together: 'sum' is one gated sum of them (cheaper); 'all'
        gives every layer a projection of its own.
      refine: feed-forward layers that work on a gist once it is pooled, where a token's price is
        paid once a block.
    """

    fanouts: tuple[int, ...] = (32, 32)
    trained: int = 2
    slots: int | tuple[int, ...] = 1
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
        if len(set(self.entries)) == 1:  # one way to say one thing
            object.__setattr__(self, "slots", self.entries[0])
        for level, (slots, rows) in enumerate(zip(self.entries, self.children, strict=True), 1):
            if slots > rows:
                raise UserError(
                    f"{slots} slots are more than the {rows} rows beneath a gist of level {level}: "
                    f"set its slots to {rows} at most."
                )
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

    @property
    def entries(self) -> tuple[int, ...]:
        """Of a gist, by level from 1: its slots."""
        return slots_by_level(self.slots, self.levels)

    @property
    def children(self) -> tuple[int, ...]:
        """What a gist is pooled from, by level from 1: tokens, or the slots of gists."""
        return self.block, *(
            k * below for k, below in zip(self.fanouts[1:], self.entries[:-1], strict=True)
        )

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
      kept: (layers, key/value heads) in each of which rows are kept; () where none are.
    """

    config: GistConfig
    children: int
    slots: int
    kept: tuple[int, ...] = ()

    def setup(self):
        c = self.config
        dense = nn.Dense
        self.enter = dense(c.d_model, use_bias=False, name="enter")
        self.place = self.param(
            "place", nn.initializers.normal(0.02), (self.children, c.d_model)
        )
        self.score = dense(self.slots * c.n_heads, use_bias=False, name="score")
        # What adds to kept rows begins as nothing.
        scale = {"kernel_init": nn.initializers.zeros} if self.kept else {}
        self.leave = dense(c.width, use_bias=False, name="leave", **scale)
        if self.kept:
            zeros = nn.initializers.zeros
            self.keep = nn.DenseGeneral(self.kept, use_bias=False, kernel_init=zeros, name="keep")
            spread = functools.partial(_spread, self.slots)
            self.kept_place = self.param("kept_place", spread, (self.children, *self.kept))

    def inward(self, children):
        """[n, C, d] -> [n, C, d_model]."""
        return self.enter(children) + self.place.astype(children.dtype)

    def outward(self, x):
        """[n, C, d_model] -> [n, slots, width]: attention pooling, one softmax a slot and head."""
        c = self.config
        n, children, width = x.shape
        weights = self.score(x).reshape(n, children, self.slots, c.n_heads)
        weights = jax.nn.softmax(weights.astype(jnp.float32), axis=1).astype(x.dtype)
        heads = x.reshape(n, children, c.n_heads, width // c.n_heads)
        pooled = jnp.einsum("ncsh,nchd->nshd", weights, heads).reshape(n, self.slots, width)
        return self.leave(pooled)

    def worth(self, x):
        """How much the rows of each child are worth keeping, by layer and key/value head:
        [n, C, d_model] -> [n, C, L, K]."""
        return (self.keep(x) + self.kept_place).astype(jnp.float32)

    def best(self, x, rows):
        """The rows of the children that are worth most, in order of time, each layer and head by
        itself: [n, C, d_model], [n, C, L, 2, K, H] -> [n, slots, L, 2, K, H]."""
        worth = jnp.moveaxis(self.worth(x), 1, -1)  # [n, L, K, C]
        which = jnp.sort(jax.lax.top_k(worth, self.slots)[1], axis=-1)
        which = jnp.moveaxis(which, -1, 1)  # [n, slots, L, K]
        return jnp.take_along_axis(rows, which[:, :, :, None, :, None], axis=1)


def _spread(slots, key, shape, dtype=jnp.float32):
    """Scores [C, L, K] under which the last child of every slot's stretch is among the best."""
    del key
    last = (jnp.arange(slots) + 1) * shape[0] // slots - 1
    scores = jnp.zeros(shape[:1], dtype).at[last].set(0.1)
    return jnp.broadcast_to(scores[:, None, None], shape)


class Codes(nn.Module):
    """Rows as codes and back, each layer and head by itself.

    What a slot keeps in one head is of another token than what it keeps in the next, so no common
    map of few dimensions holds it all: in a quarter of the size, all heads at once, more than half
    of what kept rows recover is lost, in 3/4 of each head next to nothing (RESULTS.md).

    Attributes:
      size: numbers of a code, of one layer and head.
    """

    size: int
    base: BaseConfig

    def setup(self):
        b = self.base
        shape = (b.n_layers, b.n_kv_heads, 2, b.head_dim)
        some = nn.initializers.normal(0.02)
        self.inward = self.param("inward", some, (*shape, self.size))
        self.outward = self.param("outward", some, (*shape, self.size))
        self.mean = self.param("mean", nn.initializers.zeros, shape)

    def code(self, rows):
        """[..., L, 2, K, H] -> [..., L·K·size]."""
        apart = jnp.moveaxis(rows, -3, -2) - self.mean  # [..., L, K, 2, H]
        codes = jnp.einsum("...lkch,lkchs->...lks", PACE * apart, self.inward)
        layers, heads, size = codes.shape[-3:]
        return codes.reshape(*codes.shape[:-3], layers * heads * size)

    def rows(self, gists):
        """[..., L·K·size] -> [..., L, 2, K, H]."""
        codes = gists.reshape(*gists.shape[:-1], *self.inward.shape[:2], self.size)
        apart = jnp.einsum("...lks,lkchs->...lkch", PACE * codes, self.outward)
        return jnp.moveaxis(apart + self.mean, -2, -3)


class GistNet(nn.Module):
    """See the module's docstring. Every method is called through `apply(..., method=...)`."""

    config: GistConfig
    base: BaseConfig

    def setup(self):
        c, b = self.config, self.base
        self.mix_layers = MIXES[c.mix](c.d_model, name="mix")
        kept = (b.n_layers, b.n_kv_heads) if c.keeps else ()
        self.pools = [
            Pool(c, *of, kept, name=f"lod{level}")
            for level, of in enumerate(zip(c.children, c.entries, strict=True), 1)
        ]
        self.attends = [CrossAttention(c.n_heads, name=f"attend{i}") for i in range(c.n_layers)]
        self.feeds = [FeedForward(c.d_ff, name=f"feed{i}") for i in range(c.n_layers)]
        self.refines = [FeedForward(2 * c.width, name=f"refine{i}") for i in range(c.refine)]
        if c.keeps:
            self.codes = Codes(code_size(c, b), b, name="codes")
        elif c.inject == "kv":
            shape = (b.n_layers, 2, b.n_kv_heads, b.head_dim)
            self.to_rows = nn.DenseGeneral(shape, name="rows")
        else:
            self.to_entry = nn.Dense(b.d_model, name="entry")

    def __call__(self, states, rows):
        """Touches every parameter: for `init` only."""
        gists = self.tree(states, rows)
        return [self.emit(g) for g in gists]

    def blocks(self, states: jax.Array, rows: Rows) -> jax.Array:
        """LOD1 gists of whole blocks: [L + 1, B, T, D], [L, B, T, K, H] -> [B, T / K_1, slots, W].
        """
        kept = None
        if self.config.keeps:
            kept = jnp.moveaxis(jnp.stack(rows, axis=1), (2, 3), (0, 1))  # [B, T, L, 2, K, H]
        return self._pooled(1, self.mix_layers(states), kept)

    def ascend(self, level: int, gists: jax.Array) -> jax.Array:
        """Gists of level - 1 to gists of level: [B, n, slots, W] -> [B, n / K_l, slots, W]."""
        below = _flat(gists)
        return self._pooled(level, below, self.uttered(below) if self.config.keeps else None)

    def tree(self, states: jax.Array, rows: Rows) -> list[jax.Array]:
        """All gists of a stretch of whole top-level nodes, one array a level, LOD1 first."""
        gists = [self.blocks(states, rows)]
        for level in range(2, self.config.levels + 1):
            gists.append(self.ascend(level, gists[-1]))
        return gists

    def worth(self, level: int, below: jax.Array) -> jax.Array:
        """What every child of nodes of `level` is worth to their gists: [B, children, L, K].

        below: the states [L + 1, B, T, D], or the gists [B, n, slots, W] of the level below.
        """
        children = self.mix_layers(below) if level == 1 else _flat(below)
        worth = self.pools[level - 1].worth(self._seen(level, children))
        return worth.reshape(*children.shape[:2], *worth.shape[2:])

    def _pooled(self, level, below, rows):
        """[B, children, d], and their rows where some are kept -> [B, nodes, slots, W]."""
        own, x = self.pools[level - 1], self._seen(level, below)
        gists = own.outward(x)
        if rows is not None:
            kept = own.best(x, rows.reshape(*x.shape[:2], *rows.shape[2:]))
            gists = gists + self.codes.code(kept)
        for refine in self.refines:
            gists = refine(gists)
        return gists.reshape(below.shape[0], below.shape[1] // own.children, *gists.shape[1:])

    def _seen(self, level, below):
        """Children [B, C·nodes, d] as those of a node see each other: [B·nodes, C, d_model]."""
        own = self.pools[level - 1]
        b, t, d = below.shape
        x = own.inward(below.reshape(b * t // own.children, own.children, d))
        for attend, feed in zip(self.attends, self.feeds, strict=True):
            x = feed(attend(x, None))
        return x

    def uttered(self, gists: jax.Array) -> jax.Array:
        """[B, n, width] -> rows [B, n, L, 2, K, H]."""
        return self.codes.rows(gists) if self.config.keeps else self.to_rows(gists)

    def emit(self, gists: jax.Array) -> Rows | jax.Array:
        """What a gist puts into the base: rows for `kv`, an input entry for `input`.

        [B, n, slots, width] -> Rows of [L, B, n·slots, K, H], or entries [B, n·slots, D].
        """
        flat = _flat(gists)
        if self.config.inject == "input":
            return self.to_entry(flat)
        rows = jnp.moveaxis(self.uttered(flat), (2, 3), (0, 1))  # [L, 2, B, n·slots, K, H]
        return Rows(rows[:, 0], rows[:, 1])


def _flat(gists: jax.Array) -> jax.Array:
    """[B, n, slots, W] -> [B, n·slots, W]."""
    b, n, slots, width = gists.shape
    return gists.reshape(b, n * slots, width)


def code_size(gist: GistConfig, base: BaseConfig) -> int:
    """Numbers in which a gist that keeps rows holds those of one layer and head.

    Raises UserError where its width cannot be shared among them evenly.
    """
    heads = base.n_layers * base.n_kv_heads
    if gist.width % heads:
        raise UserError(
            f"a gist of width {gist.width} cannot be shared among {base.n_layers} layers × "
            f"{base.n_kv_heads} key/value heads: make it a multiple of {heads}."
        )
    return gist.width // heads
