"""The frozen decoder: Llama 2/3, Qwen2/2.5, Qwen3, SmolLM2/3 and Mistral in one Linen module.

It reads *entries* (tokens, or vectors in place of their embeddings) at explicit positions, behind
an optional `Context`: rows of keys and values that were made elsewhere, namely gists and blocks
from their own ingest windows (design: law 8). Keys leave and enter unrotated.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mctx.errors import UserError
from mctx.models import rope
from mctx.models.attention import NEGATIVE, attention_behind, platform

COPIES = 8  # of an entry that is read alone, on a GPU: see `copied`


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Shape of a decoder. `rope_layers[l]` is False where layer l has no positions (SmolLM3)."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: rope.RopeScaling | None = None
    rope_layers: tuple[bool, ...] | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    norm_eps: float = 1e-6
    window: int = 2048  # the length it was trained at
    prefix: tuple[int, ...] = (0,)  # tokens that every ingest window starts with

    def __post_init__(self):
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise UserError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly: make "
                "base.n_heads a multiple of base.n_kv_heads."
            )
        if not all(0 <= token < self.vocab_size for token in self.prefix):
            raise UserError(
                f"the prefix {self.prefix} has ids that a vocabulary of {self.vocab_size} lacks: "
                "set base.prefix to tokens of the base, or base.vocab_size to their number."
            )

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> BaseConfig:
        """From JSON's plain types (lists where tuples were)."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if values.get("rope_scaling"):
            values["rope_scaling"] = rope.RopeScaling(**values["rope_scaling"])
        return cls(**values)


class Rows(NamedTuple):
    """Keys (unrotated) and values of entries in every layer: each [L, B, R, K, H]."""

    k: jax.Array
    v: jax.Array


class Context(NamedTuple):
    """What stands before the entries being read.

    Attributes:
      rows: keys and values, [L, B, R, K, H].
      positions: [B, R], where each row stands now.
      bias: [B, R], 0 for a row that is read, `NEGATIVE` for one that is not, or a log-gate.
    """

    rows: Rows
    positions: jax.Array
    bias: jax.Array


class Ready(NamedTuple):
    """A context that is read as it lies: nothing of it is rotated, moved or joined.

    Attributes:
      parts: keys that `rotated` made for the places where they stand, and values: each
        [L, B or 1, R_i, K, H], all before the entries.
      bias: [B, R], as a `Context`'s, over all parts in their order.
    """

    parts: tuple[Rows, ...]
    bias: jax.Array


class Read(NamedTuple):
    """What one pass of the base returns.

    Attributes:
      hidden: [B, T, D], after the last norm: `logits` takes these.
      rows: the entries' own keys and values, [L, B, T, K, H].
      states: [L + 1, B, T, D], the residual stream before each layer and after the last; None
        unless asked for.
    """

    hidden: jax.Array
    rows: Rows
    states: jax.Array | None


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype)


def copied(x: jax.Array, rows: int) -> jax.Array:
    """x [1, …] as `rows` equal rows, of which XLA cannot know that they are equal; others as they
    are.

    XLA makes a small matrix times one vector an elementwise product, written out and then summed:
    on an H200 five times as long as it takes to read the matrix. Of several rows it makes none.
    """
    if len(x) == rows:
        return x
    return jax.lax.optimization_barrier(jnp.broadcast_to(x, (rows, *x.shape[1:])))


def low_rank(module: nn.Module, name: str, x: jax.Array, out: jax.Array) -> jax.Array:
    """`out`, of projection `name` of x, with what a LoRA grafted beside it adds, if there is one.

    See `mctx.models.lora`: a is [*in, r], b is [r, *out].
    """
    if not module.has_variable("params", f"{name}_lora_a"):
        return out
    a, b = (module.get_variable("params", f"{name}_lora_{i}").astype(x.dtype) for i in "ab")
    return out + jnp.tensordot(jnp.tensordot(x, a, a.ndim - 1), b, 1)


class Attention(nn.Module):
    config: BaseConfig

    @nn.compact
    def __call__(self, x, positions, bias, context, has_rope, layer):
        c = self.config

        def project(name, heads):
            dense = nn.DenseGeneral(
                (heads, c.head_dim),
                use_bias=c.qkv_bias,
                dtype=x.dtype,
                name=name,
            )
            return low_rank(self, name, x, dense(x))[: len(positions)]

        q = project("q", c.n_heads)  # [B, T, N, H]
        k = project("k", c.n_kv_heads)  # [B, T, K, H]
        v = project("v", c.n_kv_heads)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, name="q_norm")(q)
            k = RMSNorm(c.norm_eps, name="k_norm")(k)
        own, key_positions, parts = Rows(k, v), positions, ()
        if isinstance(context, Ready):
            parts = [(rows.k.astype(k.dtype), rows.v.astype(v.dtype)) for rows in context.parts]
        elif context is not None:
            k = jnp.concatenate([context.rows.k.astype(k.dtype), k], axis=1)  # [B, S, K, H]
            v = jnp.concatenate([context.rows.v.astype(v.dtype), v], axis=1)
            key_positions = jnp.concatenate([context.positions, positions], axis=1)
        freqs = _frequencies(c)
        # A layer without RoPE turns by no angle: the case is a value, the path the same.
        q = rope.rotate(q, positions * has_rope, freqs)
        k = rope.rotate(k, key_positions * has_rope, freqs)
        seen = copied(attention_behind(q, k, v, parts, layer, bias), len(x))
        dense = nn.DenseGeneral(
            c.d_model,
            axis=(-2, -1),
            use_bias=False,
            dtype=x.dtype,
            name="o",
        )
        return low_rank(self, "o", seen, dense(seen)), own


class Mlp(nn.Module):
    config: BaseConfig

    @nn.compact
    def __call__(self, x):
        def project(name, width, x):
            dense = nn.Dense(width, use_bias=False, dtype=x.dtype, name=name)
            return low_rank(self, name, x, dense(x))

        gate = project("gate", self.config.d_ff, x)
        up = project("up", self.config.d_ff, x)
        return project("down", self.config.d_model, nn.silu(gate) * up)


class Layer(nn.Module):
    """One decoder layer in the shape `nn.scan` wants: carry, then (rows, state before it).

    Rows of a `Context` come a layer at a time; those of a `Ready` one whole, and are read in place.
    """

    config: BaseConfig
    collect: bool

    @nn.compact
    def __call__(self, x, context_rows, has_rope, layer, positions, bias, context):
        eps = self.config.norm_eps
        if context_rows is not None:
            context = context._replace(rows=context_rows)
        attended, rows = Attention(self.config, name="attn")(
            RMSNorm(eps, name="attn_norm")(x), positions, bias, context, has_rope, layer
        )
        y = x + attended
        y = y + Mlp(self.config, name="mlp")(RMSNorm(eps, name="mlp_norm")(y))
        return y, (rows, x if self.collect else None)


class Base(nn.Module):
    """The decoder. Parameters are stacked over layers ([L, ...]) and scanned."""

    config: BaseConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        entries: jax.Array,
        positions: jax.Array,
        context: Context | Ready | None = None,
        valid: jax.Array | None = None,
        collect: bool = False,
    ) -> Read:
        """Reads entries causally, behind a context.

        Args:
          entries: token ids [B, T], or vectors [B, T, D] in place of their embeddings.
          positions: [B, T].
          context: rows visible to every entry, as far as their bias lets them.
          valid: [B, T], False for padding that no entry may read; None when all are valid.
          collect: also return the states of all layers.
        """
        c = self.config
        embed = nn.Embed(c.vocab_size, c.d_model, dtype=self.dtype, name="embed")
        x = embed(entries) if entries.ndim == 2 else entries.astype(self.dtype)
        bias = _key_bias(context, valid, x.shape[:2])
        x = copied(x, COPIES if x.shape[:2] == (1, 1) and platform() == "gpu" else len(x))
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.n_layers,
            check_constancy_invariants=False,  # it would trace every layer twice to find none
            unroll=c.n_layers if self._unrolled(x) else 1,
        )
        by_layer = context.rows if isinstance(context, Context) else None
        x, (rows, states) = scanned(c, collect, name="layers")(
            x,
            by_layer,
            _rope_layers(c),
            jnp.arange(c.n_layers),
            positions,
            bias,
            context if by_layer is None else context._replace(rows=None),
        )
        if collect:
            states = jnp.concatenate([states, x[None]], axis=0)  # [L + 1, B, T, D]
            states = states[:, : len(entries)]
        hidden = RMSNorm(c.norm_eps, name="final_norm")(x[: len(entries)])
        if not c.tied:
            # Created here so that `init` makes it; `logits` reads it from the tree.
            self.param("head", nn.initializers.lecun_normal(), (c.d_model, c.vocab_size))
        return Read(hidden, rows, states)


    def _unrolled(self, x) -> bool:
        """On a GPU a loop copies what each turn reads and keeps, a third of the time of one new
        entry and a fifth of a step of pre-training (H200). It compiles faster, and what is
        computed again must be in one: outside, XLA would find it twice and keep it."""
        return (x.shape[1] == 1 or not self.remat) and platform() == "gpu"


def rotated(config: BaseConfig, keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Keys [L, B, R, K, H] as every layer reads them at positions [B, R]: for a `Ready` context."""
    turns = _rope_layers(config)[:, None, None] * positions  # [L, B, R]
    return rope.rotate(keys, turns, _frequencies(config))


def _frequencies(c: BaseConfig):
    return rope.frequencies(c.head_dim, c.rope_theta, c.rope_scaling)


def _rope_layers(c: BaseConfig):
    """[L], 1 where a layer has positions, 0 where it has none."""
    return jnp.asarray(c.rope_layers or (True,) * c.n_layers, jnp.int32)


def _key_bias(context, valid, shape):
    """[B, S] over context and entries, or None where every key is simply visible."""
    if context is None and valid is None:
        return None
    own = jnp.zeros(shape) if valid is None else jnp.where(valid, 0.0, NEGATIVE)
    return own if context is None else jnp.concatenate([context.bias, own], axis=1)


def logits(params: dict, hidden: jax.Array) -> jax.Array:
    """[..., D] -> [..., V], float32; the tied head is the embedding table."""
    head = params["head"] if "head" in params else params["embed"]["embedding"].T
    return jnp.einsum(
        "...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def token_nll(params: dict, hidden: jax.Array, targets: jax.Array, chunk: int = 256) -> jax.Array:
    """Negative log likelihood in nats of each target given its hidden state.

    The vocabulary's logits never exist for more than `chunk` positions at a time, forward or
    backward.

    Args:
      hidden: [B, T, D]. targets: [B, T]. Both already shifted: hidden[t] predicts targets[t].
    """

    def piece(h, y):
        scores = logits(params, h)
        picked = jnp.take_along_axis(scores, y[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(scores, axis=-1) - picked

    return _in_chunks(piece, hidden, targets, chunk)


def token_hits(
    params: dict, hidden: jax.Array, targets: jax.Array, chunk: int = 256
) -> jax.Array:
    """Whether each target is the likeliest token given its hidden state; as `token_nll`."""
    return _in_chunks(lambda h, y: jnp.argmax(logits(params, h), -1) == y, hidden, targets, chunk)


def token_divergence(
    params: dict, hidden: jax.Array, teacher: jax.Array, chunk: int = 256
) -> jax.Array:
    """KL divergence in nats of what `hidden` predicts from what `teacher` does: as `token_nll`.

    Args:
      hidden, teacher: [B, T, D]. The teacher gets no gradient.
    """

    def piece(h, t):
        own, wanted = (jax.nn.log_softmax(logits(params, x), axis=-1) for x in (h, t))
        return jnp.sum(jnp.exp(wanted) * (wanted - own), axis=-1)

    return _in_chunks(piece, hidden, jax.lax.stop_gradient(teacher), chunk)


def _in_chunks(of, hidden, targets, chunk):
    """`of(hidden, targets)` [B, T], some positions at a time, forward or backward."""
    b, t = hidden.shape[:2]
    size = min(chunk, t)
    pad = -t % size

    def cut(x):  # [B, T, ...] -> [chunks, B, size, ...]
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)

    pieces = cut(hidden), cut(targets)
    out = jax.lax.map(lambda args: jax.checkpoint(of)(*args), pieces)  # [chunks, B, size]
    return out.swapaxes(0, 1).reshape(b, -1)[:, :t]


def count_parameters(params: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
