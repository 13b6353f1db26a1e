"""A corpus on disk: documents encoded by several processes, with a manifest and a sketch."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from data import minhash
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

MANIFEST = "manifest.json"
BATCH = 500_000  # characters that a process encodes at a time

console = Console(stderr=True)


class Document(NamedTuple):
    """A text on its way into a corpus; documents of a package come one after the other."""

    package: str
    version: str
    text: str
    signatures: np.ndarray  # uint32 [n, minhash.PERMUTATIONS], of the text or of its pieces


class Part(NamedTuple):
    """What goes into one corpus: `train` or `valid` of a domain."""

    documents: list[Document]
    about: dict  # for the manifest: what was left out, and why


def workers(processes: int | None) -> ProcessPoolExecutor:
    """Processes (None: one a core) that use one thread each."""
    count = processes or os.cpu_count() or 1
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def dtype_of(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    """The type that a corpus keeps the ids of a tokenizer in."""
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


@cache
def loaded(directory: Path) -> Tokenizer:
    """The tokenizer of a directory, read once a process."""
    return Tokenizer.load(directory)


def _encode(directory: Path, texts: Sequence[str]) -> list[np.ndarray]:
    tokenizer = loaded(directory)
    dtype = dtype_of(tokenizer)
    ids = tokenizer.encode_batch(texts)
    return [np.append(one, tokenizer.eot_id).astype(dtype) for one in ids]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts of about `BATCH` characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def manifest_of(directory: Path) -> dict:
    """What a folder's manifest says.

    Raises:
      UserError: it is not whole, as one that is half written.
      FileNotFoundError: there is none.
    """
    path = directory / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON: copy it anew, or make its folder again.") from (
            error
        )


def try_folder(directory: Path) -> None:
    """UserError where no such folder can be made or written to; leaves none that was not there."""
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK | os.X_OK)
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise UserError(
            f"The folder {directory} cannot be made ({error.strerror}): choose another --out."
        ) from error
    if not writable:
        raise UserError(f"The folder {directory} cannot be written to: choose another --out.")


def begin(directory: Path, tokenizer: Tokenizer) -> None:
    """Makes a folder ready to be written: without a manifest, with the tokenizer.

    The manifest goes first, so that the tokens of before never lie beside another tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    tokenizer.save(directory)


def write(directory: Path, part: Part, tokenizer: Tokenizer, pool: ProcessPoolExecutor) -> int:
    """Encode documents, in order, and write a corpus of them; returns its number of tokens."""
    begin(directory, tokenizer)
    documents = part.documents
    batches = list(_batches([document.text for document in documents]))
    encoded = pool.map(_encode, [directory] * len(batches), batches)
    title = f"encoding {directory.parent.name}/{directory.name}"
    found = track(encoded, title, len(batches), console=console)
    ids = [one for batch in found for one in batch]

    owner = _numbered([document.package for document in documents])
    packages: list[dict] = []
    for document, number in zip(documents, owner, strict=True):
        if number == len(packages):
            packages.append({"name": document.package, "version": document.version, "texts": []})
        packages[number]["texts"].append(hashlib.sha256(document.text.encode()).hexdigest())
    for package, size in zip(packages, np.bincount(owner, [len(one) for one in ids]), strict=True):
        texts = package.pop("texts")
        digest = hashlib.sha256("".join(texts).encode()).hexdigest()
        package |= {"files": len(texts), "tokens": int(size), "sha256": digest}
    signatures = np.concatenate([document.signatures for document in documents])
    return save(directory, ids, owner, packages, signatures, tokenizer, part.about)


def _numbered(names: Sequence[str]) -> np.ndarray:
    """For each name, the number of different names before its first place."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def save(
    directory: Path,
    ids: Sequence[np.ndarray],
    owner: np.ndarray,
    packages: list[dict],
    signatures: np.ndarray,
    tokenizer: Tokenizer,
    about: dict,
) -> int:
    """Write the files of a corpus; returns its number of tokens.

    Args:
      directory: an existing one, with the tokenizer.
      ids: of each document, its end among them.
      owner: int [documents], the index of each one's package, never falling.
      packages: what the manifest says of each.
      signatures: uint32 [n, minhash.PERMUTATIONS], of what the sketch is to know.
      about: more for the manifest.
    """
    stops = np.cumsum([len(one) for one in ids])
    documents = np.stack([np.append(0, stops[:-1]), stops, owner], axis=1)
    manifest = {
        "tokens": int(stops[-1]), "documents": len(ids), "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint, "python": platform.python_version(), **about,
        "packages": packages,
    }
    arrays = {"tokens": np.concatenate(ids), "documents": documents}
    put(directory, arrays | {"sketch": minhash.sketch(signatures)}, manifest)
    return manifest["tokens"]


def put(directory: Path, arrays: Mapping[str, np.ndarray], manifest: dict) -> None:
    """Writes NAME.npy of each array, and manifest.json, over what is there.

    Without its manifest a folder is none, so that one half written is not taken for whole; and a
    file that somebody has mapped stays theirs.
    """
    (directory / MANIFEST).unlink(missing_ok=True)
    for name, array in arrays.items():
        draft = directory / f".{name}.npy"
        with draft.open("wb") as file:
            np.save(file, array)
        draft.replace(directory / f"{name}.npy")
    draft = directory / f".{MANIFEST}"
    draft.write_text(json.dumps(manifest, indent=1))
    draft.replace(directory / MANIFEST)
