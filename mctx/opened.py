"""A checkpoint, opened: everything a session needs, in one value."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mctx import checkpoint
from mctx.models.wrapped import Wrapped
from mctx.tokenizer import Tokenizer

ITEMS = ("base", "gistnet", "lensnet", "mof")


class Opened(NamedTuple):
    """Attributes:
    model: shapes and modules. params: item -> parameters.
    tokenizer: the checkpoint's. fingerprint: of what makes gists (base and GistNet).
    config: the checkpoint's `config` item.
    """

    model: Wrapped
    params: dict
    tokenizer: Tokenizer
    fingerprint: str
    config: dict


def open_checkpoint(
    directory: str | Path, items: tuple[str, ...] = ITEMS, step: str | int = "latest"
) -> Opened:
    """Opens a shipped checkpoint or a training workdir; loads only the items asked for.

    Raises:
      UserError: the directory, an item or the tokenizer is missing, or they do not fit together.
    """
    params, config = checkpoint.load_items(directory, items, step)
    model = Wrapped.from_dict(config)
    tokenizer = Tokenizer.load(_tokenizer_folder(Path(directory)), model.base.vocab_size)
    return Opened(model, params, tokenizer, fingerprint(params), config)


def fingerprint(params: dict) -> str:
    """Sixteen hexadecimal digits that change with any weight of the base or GistNet."""
    digest = hashlib.sha256()
    for name in ("base", "gistnet"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.get(name, {})):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _tokenizer_folder(directory: Path) -> Path:
    """A bundle has its tokenizer beside its steps; a workdir, one in each phase's folder."""
    folders = [directory, *(directory / phase for phase in ("base", "gist", "lens", "mof"))]
    return next((f for f in folders if (f / "tokenizer.json").exists()), directory)
