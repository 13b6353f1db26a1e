"""What a checkpoint that was trained on corpora says of them."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from pathlib import Path

import numpy as np

from data.mixture import domains_of
from data.written import manifest_of
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

GENERATED = ("tasks", "questions")  # what has no sources to name
Provenance = tuple[dict, np.ndarray, str]  # manifest, sketch, `tokenizer.json`


def provenance(directory: str | Path) -> Provenance:
    """One manifest, sketch and `tokenizer.json` for the `train` parts of all domains of a corpus.

    The manifest has `domains` (by name, each domain's own, less the packages) and all `packages`,
    each with its `domain`; the sketch knows the texts of all. Questions that lie beside the domains
    are told of as one more.

    Raises:
      UserError: there is no corpus, a file of it is missing, or its questions are hidden in text
        that is not of it.
    """
    parts = {name: path / "train" for name, path in domains_of(directory).items()}
    try:
        found = {name: manifest_of(path) for name, path in parts.items()}
        sketches = [np.load(path / "sketch.npy") for path in parts.values()]
        tokenizer = (next(iter(parts.values())) / "tokenizer.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: give the corpus trained on.") from error
    asked = Path(directory) / "questions" / "train"
    if asked.is_dir():
        found["questions"] = _of_questions(asked, tuple(parts))
    packages = [
        {"domain": name, **package}
        for name, manifest in found.items() for package in manifest.pop("packages")
    ]
    manifest = {
        "tokens": sum(one["tokens"] for one in found.values()), "domains": found,
        "packages": packages,
    }
    return manifest, reduce(np.bitwise_or, sketches), tokenizer


def _of_questions(directory: Path, domains: tuple[str, ...]) -> dict:
    """The manifest of questions, as if they were a domain: one package, told by how it was made.

    Raises UserError where they are hidden in text of none of the `domains`: nobody would know it.
    """
    try:
        about = manifest_of(directory)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: give the corpus trained on.") from error
    hay = ["/".join(Path(place).parts[-2:]) for place in about["hay"]]
    strange = [place for place in hay if place not in {f"{name}/train" for name in domains}]
    if strange:
        raise UserError(
            f"{directory} has questions that are hidden in {strange[0]}, which is no part of that "
            "corpus: make them with --hay of its own `train` parts."
        )
    about |= {"hay": hay, "tokens": about["count"] * (about["length"] + about["tail"])}
    package = {
        "name": f"questions {about['seed']}", "version": f"seed {about['seed']}",
        "files": about["count"], "tokens": about["tokens"],
        "sha256": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest(),
    }
    return {**about, "packages": [package]}


def shipped_provenance(checkpoint: str | Path) -> Provenance:
    """As `provenance`, of what a shipped checkpoint was trained on, by its own files.

    Raises UserError where it has none, as a training workdir.
    """
    checkpoint = Path(checkpoint)
    try:
        manifest = manifest_of(checkpoint)
        sketch = np.load(checkpoint / "sketch.npy")
        tokenizer = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{checkpoint} was not shipped, it has no {Path(error.filename).name}: give a "
            "checkpoint that `python -m experiments.ship` made."
        ) from error
    return manifest, sketch, tokenizer


def union(before: Provenance, after: Provenance) -> Provenance:
    """What was trained on first with one, then with the other.

    A package of both (name, version and hash) is told of once. A domain of both is told of as
    `after` has it, with all its tokens, and where they differ with the other as its `before`.

    Raises UserError where their tokenizers differ.
    """
    (first, sketch, tokenizer), (second, more, others) = before, after
    if Tokenizer(tokenizer).fingerprint != Tokenizer(others).fingerprint:
        raise UserError(
            "the corpus has another tokenizer than the checkpoint that was trained on: make it "
            "with `python -m data.corpus --tokenizer` of that checkpoint."
        )
    known = set(map(_identity, first["packages"]))
    fresh = [package for package in second["packages"] if _identity(package) not in known]
    packages = sorted([*first["packages"], *fresh], key=lambda package: package["domain"])
    domains = {}
    for name in sorted({**first["domains"], **second["domains"]}):
        told = [one["domains"][name] for one in (first, second) if name in one["domains"]]
        domains[name] = told[-1]
        if told[0] != told[-1]:
            tokens = sum(p["tokens"] for p in packages if p["domain"] == name)
            domains[name] = told[-1] | {"tokens": tokens, "before": told[0]}
    manifest = {
        "tokens": sum(one["tokens"] for one in domains.values()), "domains": domains,
        "packages": packages,
    }
    return manifest, sketch | more, tokenizer


def _identity(package: dict) -> tuple[str, str, str]:
    return package["name"], package["version"], package["sha256"]
