"""What a phase is built from: its config, the corpora, and the parts trained before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mctx.models.base import BaseConfig
from mctx.models.gistnet import GistConfig
from mctx.models.lensnet import LensConfig
from mctx.models.wrapped import Wrapped


class Sources(NamedTuple):
    """Attributes:
    load: names of items -> (item -> parameters, the `config` item).
    segments: (length, batch, seed, step, rows) -> int32 [rows, length] within one package.
    windows: the same, anywhere in the stream.
    histories: see `data.sampling.histories`.
    held_out: like `segments`, of the validation corpus.
    held_histories: like `histories`, of the validation corpus.
    """

    load: Callable[[tuple[str, ...]], tuple[dict, dict]]
    windows: Callable[..., np.ndarray]
    segments: Callable[..., np.ndarray]
    histories: Callable[..., tuple[np.ndarray, np.ndarray]]
    held_out: Callable[..., np.ndarray]
    held_histories: Callable[..., tuple[np.ndarray, np.ndarray]]


def wrapped_from(config, trained: dict) -> Wrapped:
    """The model a phase works on: configs of parts already trained win over the config file's."""
    part = {
        "base": BaseConfig.from_dict,
        "gist": GistConfig.from_dict,
        "lens": LensConfig.from_dict,
    }
    given = {name: trained.get(name) or config.get(name) for name in part}
    made = {name: make(dict(given[name])) for name, make in part.items() if given[name]}
    window = trained.get("window") or config.window
    return Wrapped(**made, window=window, dtype=config.dtype)
