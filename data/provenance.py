"""What a checkpoint that was trained on corpora says of them."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import numpy as np

from data.mixture import domains_of
from mctx.errors import UserError


def provenance(directory: str | Path) -> tuple[dict, np.ndarray, str]:
    """One manifest, sketch and `tokenizer.json` for the `train` parts of all domains of a corpus.

    The manifest has `domains` (by name, each domain's own, less the packages) and all `packages`,
    each with its `domain`; the sketch knows the texts of all.

    Raises:
      UserError: there is no corpus, or a file of it is missing.
    """
    parts = {name: path / "train" for name, path in domains_of(directory).items()}
    try:
        found = {name: json.loads((p / "manifest.json").read_text()) for name, p in parts.items()}
        sketches = [np.load(path / "sketch.npy") for path in parts.values()]
        tokenizer = (next(iter(parts.values())) / "tokenizer.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: give the corpus trained on.") from error
    packages = [
        {"domain": name, **package}
        for name, manifest in found.items() for package in manifest.pop("packages")
    ]
    manifest = {
        "tokens": sum(one["tokens"] for one in found.values()), "domains": found,
        "packages": packages,
    }
    return manifest, reduce(np.bitwise_or, sketches), tokenizer
