"""Models whose weights are drawn: for what a shape costs, whatever it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import train
from experiments.aot import known_parts
from experiments.configs import llama32_1b, wrapping
from mctx.models.base import BaseConfig
from mctx.models.gistnet import GistConfig
from mctx.models.lensnet import LensConfig
from mctx.models.wrapped import Wrapped, init_part
from mctx.opened import Opened
from mctx.training.sources import wrapped_from

ITEMS = ("base", "gistnet", "lensnet")


class Numbers:
    """In place of a tokenizer: ids are text already, and none of them ends it."""

    eot_id = -1

    def encode(self, text: Sequence[int]) -> np.ndarray:
        return np.asarray(text, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return "." * len(ids)


def billion() -> Wrapped:
    """Llama-3.2-1B's decoder in bfloat16, with the parts that its config trains.

    Fanouts are 32 on every level: ten million tokens are then 320 nodes of the highest, and a
    layout of 1,024 nodes covers them. Gists are pooled from states: a hundred thousand blocks of
    kept rows would be ten times what is measured in memory.
    """
    own = dict(pools="states", slots=1, width=1024, d_model=768, d_ff=1536, fanouts=(32, 32, 32))
    gist = wrapping.GIST | own
    lens = wrapping.LENS | dict(d_model=384, d_ff=768)
    return Wrapped(
        BaseConfig.from_dict(dict(llama32_1b.BASE)),
        GistConfig(**gist),
        LensConfig(**lens),
        window=512,
        dtype="bfloat16",
    )


MODELS = {"1b": billion}


def of_config(path: Path) -> Wrapped:
    """The model of a config file."""
    config = train.configuration(path, ["--config.corpus=none"])
    return wrapped_from(config, known_parts([config]))


def drawn(model: Wrapped) -> Opened:
    """Parameters as they are before training, made where they stay: the base's in its own type."""

    @partial(jax.jit, static_argnums=0)
    def make(item, key):
        type_ = jnp.dtype(model.dtype if item == "base" else "float32")
        return jax.tree.map(lambda x: x.astype(type_), init_part(model, item, key))

    params = {item: make(item, jax.random.key(0)) for item in ITEMS}
    return Opened(model, params, Numbers(), "random weights", {})
