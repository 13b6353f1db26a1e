"""Long texts by source and group: held-out packages, authors, folders; nothing trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import minhash, pieces, text
from data.books import author_key
from data.text import Document
from data.written import MANIFEST, manifest_of
from experiments.suites.segments import (
    PACKAGES,
    Streams,
    document_streams,
    held_out_streams,
)
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

HELD_OUT = "held-out"  # the source that is packages of this Python never trained on


class Stream(NamedTuple):
    """All that is read of one package or author: what a bootstrap draws as one.

    Attributes:
      source: what the user named. group: package, author or folder.
      tokens: int32 [n], documents behind each other, each with its end.
    """

    source: str
    group: str
    tokens: np.ndarray


def streams(
    sources: Sequence[str], checkpoint: Path, tokenizer: Tokenizer, least: int, most: int
) -> tuple[tuple[Stream, ...], list[str]]:
    """Texts of at least `least` tokens, cut to `most`, and notes on what was left out.

    Args:
      sources: `held-out`, or what `data.text.load` reads.

    Raises:
      UserError: a source cannot be read, or none has a text so long in two groups.
    """
    found: list[Stream] = []
    notes = []
    for source in sources:
        if source == HELD_OUT:
            mine = held_out(checkpoint, tokenizer, least, most)
        else:
            fit, note = new_documents(source, checkpoint)
            notes.append(note)
            mine = by_group(Path(source).name, fit, tokenizer, least, most)
        if len(mine) < 2:
            raise UserError(
                f"{source} has {len(mine)} packages or authors with {least:,} tokens, and an "
                "interval needs two: give more text, or a lower --lengths."
            )
        found += mine
    return tuple(found), notes


def source_streams(
    sources: Sequence[str], checkpoint: Path, tokenizer: Tokenizer, tokens: int
) -> tuple[Streams, list[str]]:
    """New documents of sources as they come, of `held-out` at most `tokens` tokens; and notes."""
    found: Streams = {}
    notes = []
    for source in sources:
        if source == HELD_OUT:
            found |= held_out_streams(checkpoint, tokens, tokenizer)
        else:
            fit, note = new_documents(source, checkpoint)
            notes.append(note)
            found |= document_streams(fit, tokenizer, source)
    return found, notes


def held_out(checkpoint: Path, tokenizer: Tokenizer, least: int, most: int) -> list[Stream]:
    """The first packages of this Python that are long enough and were never trained on."""
    found: list[Stream] = []
    for _, files in text.unseen_packages(checkpoint):
        documents, count = [], 0
        for document in files:
            documents.append(document)
            count += len(tokenizer.encode(document.text)) + 1
            if count >= most:
                break
        if count >= least:
            found += by_group(HELD_OUT, documents, tokenizer, least, most)
        if len(found) == PACKAGES:
            break
    return found


def by_group(
    source: str, documents: Iterable[Document], tokenizer: Tokenizer, least: int, most: int
) -> list[Stream]:
    """A stream a package, folder or author; a document without one is its own."""
    named = (d._replace(package=d.package or d.name) for d in documents)
    return [
        Stream(source, group, tokens[:most])
        for group, tokens in sorted(document_streams(named, tokenizer).items())
        if len(tokens) >= least
    ]


def new_documents(source: str, checkpoint: Path) -> tuple[list[Document], str]:
    """What of a source the checkpoint was not trained on, and a note on what was left out."""
    documents = text.load(source)
    fit, known = unseen(documents, checkpoint)
    if known is None:
        return fit, (
            f"{source}: the checkpoint does not say what it was trained on, so nobody knows "
            "whether this text is new to it."
        )
    if not fit:
        raise UserError(
            f"the checkpoint was trained on all of {source}, or on its authors or packages: name "
            "a text that is new to it."
        )
    return fit, (
        f"{source}: {known} of {len(documents)} texts left out because the checkpoint was trained "
        "on them, on near copies, or on their author or package."
    )


def unseen(documents: list[Document], checkpoint: Path) -> tuple[list[Document], int | None]:
    """Documents without those that the checkpoint was trained on, and how many those were.

    Such are all of a package or author that its manifest names, texts that its sketch knows, and
    long ones most of whose pieces it knows. None where the checkpoint has no sketch.
    """
    if not (checkpoint / "sketch.npy").exists():
        return documents, None
    sketch, names = np.load(checkpoint / "sketch.npy"), trained_names(checkpoint)

    def known(document: Document) -> bool:
        if author_key(document.package) in names:
            return True
        whole = minhash.signature(document.text)[None]
        parts = pieces.cut(document.text).signatures
        inside = minhash.in_sketch(sketch, parts).mean() > pieces.MOSTLY
        return bool(minhash.in_sketch(sketch, whole)[0] or inside)

    fit = [document for document in documents if not known(document)]
    return fit, len(documents) - len(fit)


def trained_names(checkpoint: Path) -> frozenset[str]:
    """Packages and authors that a checkpoint's manifest names, as `author_key` spells them."""
    packages = manifest_of(checkpoint)["packages"] if (checkpoint / MANIFEST).exists() else []
    return frozenset(author_key(one["name"].partition("/")[0]) for one in packages) - {""}
