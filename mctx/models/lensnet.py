"""LensNet: what is being read now looks over the gists and says where detail is needed.

Nodes cross-attend to the query (window states of the last tokens) and, among the best `m` only,
to each other, so that the cost is linear in nodes and two copies of one fact are not both wanted
(design: LensNet). Non-causal. The backbone is shared, each head has a low-rank adapter; the
staging context's lens is one more head, the last. What a gist cannot hold, a key or a number, some
heads of the base may find (`mctx.models.finder`): nodes can carry that too.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.errors import UserError
from mctx.models.attention import NEGATIVE
from mctx.models.blocks import CrossAttention, FeedForward, LayerMix

FOUND = 32  # hidden features of what the finders found
DISTANCE_BUMPS = 16  # features of log2 distance, one an octave and a half: up to 2^24 blocks


@dataclasses.dataclass(frozen=True)
class LensConfig:
    """Shape of a LensNet.

    Attributes:
      heads: working contexts that it scores for; the staging context's adapter comes after them.
      query: tokens of the recent past that it is conditioned on.
      best: nodes that every node may compare itself with.
      rank: of the per-head adapters.
      max_level: the deepest level it can be told of; deeper nodes pass as this one.
      finders: (layer, key/value head) of the base's heads whose attention to every block it is
        told of (`mctx.models.finder`); none: it sees gists alone.
      find_query: tokens of the recent past whose queries look there, `query` at most.
    """

    heads: int = 4
    query: int = 128
    d_model: int = 128
    d_ff: int = 256
    n_layers: int = 2
    n_heads: int = 4
    best: int = 32
    rank: int = 16
    max_level: int = 7
    finders: tuple[tuple[int, int], ...] = ()
    find_query: int = 64

    def __post_init__(self):
        if not all(isinstance(one, list | tuple) and len(one) == 2 for one in self.finders):
            raise UserError(
                "lens.finders must be pairs of a layer and a key/value head, as in "
                f"((6, 0), (3, 0)), not {self.finders}."
            )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> LensConfig:
        """From JSON's plain types (lists where tuples were)."""
        finders = tuple((int(layer), int(head)) for layer, head in values.get("finders", ()))
        return cls(**{**values, "finders": finders})


class Nodes(NamedTuple):
    """Candidates for detail.

    Attributes:
      gists: [B, n, W], the node's own as `seen`; an LOD0 node passes its LOD1 twin's.
      level: [B, n], 1 and up.
      distance: [B, n], blocks between the node's end and the end of the history.
      valid: [B, n].
      found: [B, n, F], what the lens's finders say of it: of blocks, the greatest beneath
        (`mctx.models.finder`). A lens without finders needs none.
    """

    gists: jax.Array
    level: jax.Array
    distance: jax.Array
    valid: jax.Array
    found: jax.Array | None = None


def seen(gists):
    """What a lens sees of gists, the mean of their slots: [..., slots, W] -> [..., W]."""
    return gists.mean(axis=-2)


class LensNet(nn.Module):
    """See the module's docstring."""

    config: LensConfig

    @nn.compact
    def __call__(
        self, states: jax.Array, nodes: Nodes, heads: jax.Array | None = None
    ) -> jax.Array:
        """How much seeing each node's children in its place would help, and how much it would harm.

        Args:
          states: [L + 1, B, Q, D], the base's window states of the last Q tokens.
          nodes: n candidates.
          heads: [B, h], whose adapters to use; None for all, the staging context's last.

        Returns:
          [B, h, n, 2], float32: logarithms of the expected gain and of the expected harm, in nats
          over the next tokens; `utility` takes their difference. Rows of invalid nodes mean
          nothing.
        """
        c = self.config
        query = LayerMix(c.d_model, name="mix")(states)  # [B, Q, d]
        x = self._encode(nodes, query.dtype)  # [B, n, d]
        for i in range(c.n_layers):
            x = CrossAttention(c.n_heads, name=f"look{i}")(x, query)
            x = FeedForward(c.d_ff, name=f"feed{i}")(x)
        if heads is None:
            heads = jnp.broadcast_to(jnp.arange(c.heads + 1), (x.shape[0], c.heads + 1))
        x = Adapters(c.heads + 1, c.rank, name="heads")(x, heads)  # [B, h, n, d]
        b, h, n, d = x.shape
        x = x.reshape(b * h, n, d)
        valid = jnp.repeat(nodes.valid, h, axis=0)  # [B·h, n]
        first = nn.Dense(2, bias_init=nn.initializers.constant(-4.0), name="first")(x)
        if c.finders:
            first = first + jnp.repeat(self._told(nodes.found), h, axis=0)
        x = self._compare(x, jnp.where(valid, utility(first), NEGATIVE))
        final = nn.Dense(2, kernel_init=nn.initializers.zeros, name="final")(x)
        return (first + final).astype(jnp.float32).reshape(b, h, n, 2)

    def _encode(self, nodes, dtype):
        c = self.config
        octave = jnp.log2(1.0 + nodes.distance.astype(jnp.float32))[..., None]
        centres = 1.5 * jnp.arange(DISTANCE_BUMPS)
        bumps = jnp.exp(-0.5 * jnp.square((octave - centres) / 1.5)).astype(dtype)
        level = nn.Embed(c.max_level + 1, c.d_model, dtype=dtype, name="level")
        gist = nn.Dense(c.d_model, use_bias=False, dtype=dtype, name="gist")
        far = nn.Dense(c.d_model, dtype=dtype, name="distance")
        g = nodes.gists.astype(jnp.float32)
        g = g * jax.lax.rsqrt(jnp.mean(jnp.square(g), axis=-1, keepdims=True) + 1e-6)
        x = gist(g.astype(dtype)) + level(jnp.minimum(nodes.level, c.max_level)) + far(bumps)
        if not c.finders:
            return x
        zeros = nn.initializers.zeros
        found = nn.Dense(c.d_model, use_bias=False, dtype=dtype, kernel_init=zeros, name="found")
        return x + found(nodes.found.astype(dtype))

    def _told(self, found):
        """What is found, straight into the logs: [B, n, F] -> [B, n, 2]. Text has few such
        events, so the way of one must be short. Without biases: nothing found, nothing said."""
        hidden = nn.silu(nn.Dense(FOUND, use_bias=False, name="weigh")(found))
        seen = jnp.concatenate([found, hidden], axis=-1)
        zeros = nn.initializers.zeros
        return nn.Dense(2, use_bias=False, kernel_init=zeros, name="told")(seen)

    def _compare(self, x, scores):
        """Every node looks at the best `m` of its head: [n] queries, [m] keys."""
        c = self.config
        best = min(c.best, x.shape[1])
        top, where = jax.lax.top_k(jax.lax.stop_gradient(scores), best)
        keys = jnp.take_along_axis(x, where[..., None], axis=1)  # [B·H, m, d]
        bias = jnp.where(top > NEGATIVE / 2, 0.0, NEGATIVE)
        x = CrossAttention(c.n_heads, name="compare")(x, keys, bias)
        return FeedForward(c.d_ff, name="compare_feed")(x)


def utility(logs: jax.Array) -> jax.Array:
    """Signed utility in nats, expected gain less expected harm: [..., 2] -> [...]."""
    # Labels are heavy-tailed but never worth e^6 nats: the bound keeps one odd node from ruling.
    gain, harm = jnp.moveaxis(jnp.exp(jnp.minimum(logs.astype(jnp.float32), 6.0)), -1, 0)
    return gain - harm


class Adapters(nn.Module):
    """One low-rank residual map a head: [B, n, d] and head numbers [B, h] -> [B, h, n, d]."""

    heads: int
    rank: int

    @nn.compact
    def __call__(self, x, which):
        d = x.shape[-1]
        init = nn.initializers.normal(d**-0.5)
        down = self.param("down", init, (self.heads, d, self.rank)).astype(x.dtype)
        up = self.param("up", nn.initializers.normal(0.02), (self.heads, self.rank, d))
        low = nn.silu(jnp.einsum("bnd,bhdr->bhnr", x, down[which]))
        return x[:, None] + jnp.einsum("bhnr,bhrd->bhnd", low, up.astype(x.dtype)[which])
