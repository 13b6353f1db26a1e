"""A wrapped model of a few thousand parameters, and random values for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models.base import BaseConfig
from mctx.models.gistnet import GistConfig
from mctx.models.lensnet import LensConfig
from mctx.models.wrapped import Wrapped, init_part

BASE = BaseConfig(
    vocab_size=32,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ff=16,
    window=64,
    prefix=(0, 3),
)
GIST = GistConfig(
    fanouts=(4, 2, 2), trained=3, width=8, d_model=8, d_ff=8, n_layers=1, n_heads=2
)
LENS = LensConfig(
    heads=2, query=8, d_model=16, d_ff=16, n_layers=1, n_heads=2, best=3, rank=2, max_level=3
)
MODEL = Wrapped(base=BASE, gist=GIST, lens=LENS, window=16)


def drawn(model: Wrapped, part: str, seed=0) -> dict:
    """Parameters of one checkpoint item in which nothing is zero because it starts at zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        mean = float(path[-1].key == "scale")
        return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(lambda key: init_part(model, part, key), jax.random.key(0))
    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def params() -> dict:
    with jax.ensure_compile_time_eval():  # whoever asks first may be tracing
        return {part: drawn(MODEL, part) for part in ("base", "gistnet", "lensnet", "mof")}


def tokens(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(1, BASE.vocab_size, (rows, length)), jnp.int32)
