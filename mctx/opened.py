"""A checkpoint, opened: everything a session needs, in one value."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx import checkpoint
from mctx.errors import UserError
from mctx.models.lora import tuned
from mctx.models.wrapped import Wrapped, init_part
from mctx.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16")
ITEMS = ("base", "gistnet", "lensnet", "mof")


class Opened(NamedTuple):
    """Attributes:
    model: shapes and modules. params: item -> parameters; without 'lensnet' a session goes by
      recency.
    tokenizer: the checkpoint's. fingerprint: of what makes gists (base and GistNet).
    config: the checkpoint's `config` item.
    """

    model: Wrapped
    params: dict
    tokenizer: Tokenizer
    fingerprint: str
    config: dict


def open_checkpoint(
    directory: str | Path,
    items: tuple[str, ...] = ITEMS,
    step: str | int = "latest",
    lora: bool = False,
    untrained: bool = False,
    dtype: str = "float32",
) -> Opened:
    """Opens a shipped checkpoint or a training workdir; loads only the items asked for.

    Args:
      lora: apply the checkpoint's `lora` item; the base's own arrays stay as they are.
      untrained: items other than the base may be missing. Without a lens a session focuses by
        recency; without a GistNet its tree holds gists that are never shown, which
        `python -m experiments.tree rebuild` replaces once one is trained.
      dtype: of the base's parameters and computation. A tree made in one is not one of the other.

    Raises:
      UserError: the directory, an item or the tokenizer is missing, or they do not fit together.
    """
    items = (items,) if isinstance(items, str) else tuple(items)
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    if untrained:
        items = tuple(i for i in items if i == "base" or checkpoint.holds(directory, i))
    items += ("lora",) * lora
    params, config = checkpoint.load_items(directory, items, step, {"base": jnp.dtype(dtype)})
    model = Wrapped.from_dict(config, dtype)
    if untrained and "gistnet" not in params:
        model = dataclasses.replace(model, gist=dataclasses.replace(model.gist, trained=0))
        params["gistnet"] = init_part(model, "gistnet", jax.random.key(0))
    params = tuned(params)
    tokenizer = Tokenizer.load(_tokenizer_folder(Path(directory)), model.base.vocab_size)
    return Opened(model, params, tokenizer, fingerprint(params), config)


def fingerprint(params: dict, items: tuple[str, ...] = ("base", "gistnet")) -> str:
    """Sixteen hexadecimal digits that change with any weight of the items (those of gists)."""
    digest = hashlib.sha256()
    for name in items:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.get(name, {})):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _tokenizer_folder(directory: Path) -> Path:
    """A bundle has its tokenizer beside its steps; a workdir, one in each phase's folder."""
    folders = [directory, *(directory / phase for phase in ("base", "gist", "lens", "mof", "lora"))]
    return next((f for f in folders if (f / "tokenizer.json").exists()), directory)
