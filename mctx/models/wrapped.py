"""A base model wrapped in MegaContext: its parts, and what the base reads for tokens and gists.

`Wrapped` holds shapes and modules, never parameters; every function takes `params`, the plain
dict of checkpoint items ('base', 'gistnet', 'lensnet', 'mof').
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mctx.errors import UserError
from mctx.models.base import Base, BaseConfig, Context, Read, Rows, token_nll
from mctx.models.finder import nothing_found
from mctx.models.gistnet import GistConfig, GistNet
from mctx.models.lensnet import LensConfig, LensNet, Nodes
from mctx.models.merger import Merger
from mctx.models.router import STATISTICS, Router


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """The parts around one frozen base.

    Attributes:
      window: tokens of an ingest window, which the base reads on its own (design: Ingest).
      dtype: of the base's computation.
      remat: whether a backward pass computes the base's layers again instead of keeping them.
    """

    base: BaseConfig
    gist: GistConfig = GistConfig()
    lens: LensConfig = LensConfig()
    window: int = 512
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for layer, head in self.lens.finders:
            if not (0 <= layer < self.base.n_layers and 0 <= head < self.base.n_kv_heads):
                raise UserError(
                    f"the base has no layer {layer} with key/value head {head}: set lens.finders "
                    "to heads that it has, or to ()."
                )

    @functools.cached_property
    def decoder(self) -> Base:
        return Base(self.base, dtype=jnp.dtype(self.dtype), remat=self.remat)

    @functools.cached_property
    def gistnet(self) -> GistNet:
        return GistNet(self.gist, self.base)

    @functools.cached_property
    def lensnet(self) -> LensNet:
        return LensNet(self.lens)

    @property
    def router(self) -> Router:
        return Router()

    @property
    def merger(self) -> Merger:
        return Merger()

    def to_dict(self) -> dict:
        return {
            "base": self.base.to_dict(),
            "gist": self.gist.to_dict(),
            "lens": self.lens.to_dict(),
            "window": self.window,
        }

    @classmethod
    def from_dict(cls, values: dict, dtype: str = "float32") -> Wrapped:
        """From a checkpoint's `config` item; parts that it lacks keep their defaults.

        Raises UserError where the base is missing, or a part has settings that it does not know.
        """
        try:
            return cls(
                base=BaseConfig.from_dict(values["base"]),
                gist=GistConfig.from_dict(values.get("gist", {})),
                lens=LensConfig.from_dict(values.get("lens", {})),
                window=values.get("window", 512),
                dtype=dtype,
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                "the checkpoint's config item does not describe a model of this version "
                f"({error}): import or train its base again."
            ) from error


def read(
    model: Wrapped,
    params: dict,
    entries: jax.Array,
    positions: jax.Array,
    context: Context | None = None,
    collect: bool = False,
) -> Read:
    """The base's one way of reading: see `Base.__call__`."""
    return model.decoder.apply(
        {"params": params["base"]}, entries, positions, context, collect=collect
    )


def prefix_rows(model: Wrapped, params: dict) -> Rows:
    """Rows of the shared prefix, [L, 1, P, K, H]: every window's, once in a working context."""
    tokens = jnp.asarray(model.base.prefix, jnp.int32)[None]
    return read(model, params, tokens, jnp.arange(tokens.shape[1])[None]).rows


def read_windows(model: Wrapped, params: dict, tokens: jax.Array) -> tuple[Rows, jax.Array]:
    """Reads tokens in independent windows, each behind the prefix and blind to the others.

    Args:
      tokens: [B, T], T a multiple of the window or less than one window.

    Returns:
      Rows [L, B, T, K, H] and states [L + 1, B, T, D].
    """
    b, t = tokens.shape
    size = min(model.window, t)
    prefix = jnp.asarray(model.base.prefix, jnp.int32)
    p = prefix.shape[0]
    windows = tokens.reshape(b * t // size, size)
    entries = jnp.concatenate(
        [jnp.broadcast_to(prefix, (windows.shape[0], p)), windows], axis=1
    )
    positions = jnp.broadcast_to(jnp.arange(p + size), entries.shape)
    out = read(model, params, entries, positions, collect=True)

    def whole(x):  # [layers, windows, P + size, ...] -> [layers, B, T, ...]
        return x[:, :, p:].reshape(x.shape[0], b, t, *x.shape[3:])

    return Rows(whole(out.rows.k), whole(out.rows.v)), whole(out.states)


def read_whole(model: Wrapped, params: dict, tokens: jax.Array) -> jax.Array:
    """The base with no limit: every token sees all before it. [B, T] -> hidden [B, T, D]."""
    b = tokens.shape[0]
    prefix = jnp.asarray(model.base.prefix, jnp.int32)
    p = prefix.shape[0]
    entries = jnp.concatenate([jnp.broadcast_to(prefix, (b, p)), tokens], axis=1)
    positions = jnp.broadcast_to(jnp.arange(entries.shape[1]), entries.shape)
    return read(model, params, entries, positions).hidden[:, p:]


def gist_rows(model: Wrapped, params: dict, gists: jax.Array) -> Rows:
    """What the base reads for gists: [B, n, slots, W] -> [L, B, n·slots, K, H].

    With `inject="input"` the base reads every entry alone behind its prefix, so that these rows,
    too, are the node's own (law 8).
    """
    emitted = model.gistnet.apply({"params": params["gistnet"]}, gists, method="emit")
    if isinstance(emitted, Rows):
        return emitted
    b, n, d = emitted.shape
    prefix = prefix_rows(model, params)
    p = prefix.k.shape[2]
    context = Context(
        Rows(*(jnp.broadcast_to(x, (x.shape[0], b * n, *x.shape[2:])) for x in prefix)),
        jnp.broadcast_to(jnp.arange(p), (b * n, p)),
        jnp.zeros((b * n, p)),
    )
    rows = read(model, params, emitted.reshape(b * n, 1, d), jnp.full((b * n, 1), p), context).rows
    return Rows(*(x.reshape(x.shape[0], b, n, *x.shape[3:]) for x in rows))


@functools.partial(jax.jit, static_argnums=(0, 1))  # Linen's init would run all that it traces
def init_part(model: Wrapped, part: str, key: jax.Array) -> dict:
    """Fresh parameters of one checkpoint item."""
    c, base = model, model.base
    states = jnp.zeros((base.n_layers + 1, 1, model.gist.span(model.gist.levels), base.d_model))
    if part == "base":
        one = jnp.zeros((1, 1), jnp.int32)
        return c.decoder.init(key, one, one)["params"]
    if part == "gistnet":
        rows = jnp.zeros((base.n_layers, *states.shape[1:3], base.n_kv_heads, base.head_dim))
        return c.gistnet.init(key, states, Rows(rows, rows))["params"]
    if part == "lensnet":
        ones = jnp.ones((1, 2), jnp.int32)
        found = nothing_found(model, ones.shape)
        nodes = Nodes(jnp.zeros((1, 2, c.gist.width)), ones, ones, ones > 0, found)
        return c.lensnet.init(key, states[:, :, : c.lens.query], nodes)["params"]
    if part == "mof":
        first, second = jax.random.split(key)
        stats = jnp.zeros((1, c.lens.heads, STATISTICS))
        hidden = jnp.zeros((2, 1, 1, base.d_model))
        return {
            "router": c.router.init(first, states[:, :, :1], stats)["params"],
            "merger": c.merger.init(second, hidden, jnp.zeros((1, 2)))["params"],
        }
    raise ValueError(f"no part is called {part!r}")


def read_behind(
    model: Wrapped,
    params: dict,
    tokens: jax.Array,
    context: Context,
    start: jax.Array,
    collect: bool = False,
) -> Read:
    """Reads tokens [B, T] behind a context, the first at position `start` [B]."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    return read(model, params, tokens, positions, context, collect)


def tail_nll(
    model: Wrapped, params: dict, tokens: jax.Array, context: Context, start: jax.Array
) -> jax.Array:
    """NLL of a tail behind a context, each token given all that is shown before it.

    Args:
      tokens: [B, T + 1]; the first is read only.
      start: [B], the position of the first.

    Returns:
      [B, T] nats, of tokens[:, 1:].
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    hidden = read_behind(model, params, inputs, context, start).hidden
    return token_nll(params["base"], hidden, targets)
