"""Text to ingest: a file, a folder, a JSON-lines collection, or the sources of a package."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import hub, minhash, sources
from data.heldout import TEST, VALIDATION, canonical
from data.written import manifest_of
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer


class Document(NamedTuple):
    """One text with its name, and the collection (package, folder, author) it is part of."""

    package: str
    name: str
    text: str


def load(source: str | Path) -> list[Document]:
    """Load the documents of a source, in order.

    Args:
      source: a `.jsonl` or `.jsonl.xz` file (an object a line, with `text` and, if wanted, `author`
        and `title`); any other file of UTF-8 text; a folder of text files
        (`data.sources.TEXT_SUFFIXES`); `package:NAME`, the Python files of a package installed
        in this interpreter (`package:python` is the standard library); or `hf:NAME[@SPLIT]`, a
        data set of the Hugging Face hub (`data.hub`).

    Raises:
      UserError: nothing is there, a file may not be read, is not UTF-8 or not JSON, or all text is
        empty.
    """
    try:
        documents = [document for document in _documents(source) if document.text.strip()]
    except OSError as error:
        raise UserError(
            f"{error.filename or source} cannot be read ({error.strerror or error}): make it "
            "readable, or name another source."
        ) from error
    if not documents:
        raise UserError(f"{source} holds no text; name a source that has some.")
    return documents


def _documents(source: str | Path) -> list[Document]:
    """As `load`, with those that are empty."""
    if str(source).startswith("package:"):
        return _from_package(str(source).removeprefix("package:"))
    if str(source).startswith(hub.PREFIX):
        return [Document(*fields) for fields in hub.texts(str(source))]
    if Path(source).is_dir():
        return [
            Document(package.name, file, _read(package.root / file))
            for package in sources.folder(Path(source)) for file in package.files
        ]
    if not Path(source).is_file():
        raise UserError(f"There is no file or folder {source}; name one, or package:NAME.")
    if str(source).endswith((".jsonl", ".jsonl.xz")):
        return list(_from_json_lines(Path(source)))
    return [Document("", Path(source).name, _read(Path(source)))]


def held_out_packages(
    checkpoint: str | Path,
    minimum_tokens: int,
    tokenizer: Tokenizer,
    per_package: int | None = None,
) -> list[Document]:
    """Documents of packages of this interpreter that a checkpoint was never trained on.

    Files come in the order of their package (see `unseen_packages`), until there are enough.

    Args:
      checkpoint: the directory with `manifest.json` and `sketch.npy`, as the training corpus had.
      minimum_tokens: how many tokens are enough.
      tokenizer: what counts them.
      per_package: take no further file of a package from this many tokens on; None for no bound.

    Raises:
      UserError: the directory lacks these files, or this interpreter has too few unseen packages.
    """
    documents, count = unseen_documents(checkpoint, minimum_tokens, tokenizer, per_package)
    if count >= minimum_tokens:
        return documents
    raise UserError(
        f"This interpreter has only {count} tokens of packages that {checkpoint} has never seen; "
        f"install more packages, or ask for fewer than {minimum_tokens} tokens."
    )


def unseen_documents(
    checkpoint: str | Path, tokens: int, tokenizer: Tokenizer, per_package: int | None = None
) -> tuple[list[Document], int]:
    """As `held_out_packages`, or all that there is, and how many tokens that is."""
    documents, count = [], 0
    for _, files in unseen_packages(checkpoint):
        enough = tokens if per_package is None else min(tokens, count + per_package)
        while count < enough and (document := next(files, None)):
            documents.append(document)
            count += len(tokenizer.encode(document.text))
        if count >= tokens:
            break
    return documents, count


def unseen_packages(checkpoint: str | Path) -> Iterator[tuple[str, Iterator[Document]]]:
    """Names and files of this interpreter's packages that a checkpoint was never trained on.

    Left out are packages named in the checkpoint's `manifest.json`, packages that were looked at
    while developing, and files that its `sketch.npy` knows, or knows near-duplicates of. The
    packages of `data.heldout.TEST` come first and in its order. Files are read as they are asked
    for; a package may turn out to have none.

    Raises:
      UserError: the directory lacks these files.
    """
    checkpoint = Path(checkpoint)
    try:
        manifest = manifest_of(checkpoint)
        sketch = np.load(checkpoint / "sketch.npy")
    except FileNotFoundError as error:
        raise UserError(
            f"{checkpoint} does not say what it was trained on: {error.filename} is missing."
        ) from error
    seen = {package["name"] for package in manifest["packages"]} | set(VALIDATION)
    rank = {name: place for place, name in enumerate(TEST)}
    packages = [*sources.installed(sources.site_folders()), sources.standard_library()]
    unseen = sorted(
        (package for package in packages if package.name not in seen),
        key=lambda package: (package.name == "python", rank.get(package.name, len(rank))),
    )
    for package in unseen:
        yield package.name, _unseen_files(package, sketch)


def _unseen_files(package: sources.Package, sketch: np.ndarray) -> Iterator[Document]:
    for file in package.files:
        reading = sources.read(package.root, file)
        if not reading.fault and not minhash.in_sketch(sketch, reading.signature[None])[0]:
            yield Document(package.name, file, reading.text)


def _read(path: Path) -> str:
    try:
        return sources.decode(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8."
        ) from error


def _from_package(name: str) -> list[Document]:
    packages = {package.name: package for package in sources.installed(sources.site_folders())}
    packages["python"] = sources.standard_library()
    if canonical(name) not in packages:
        raise UserError(f"No package {name} is installed here; install it or name another one.")
    package = packages[canonical(name)]
    readings = [(file, sources.read(package.root, file)) for file in package.files]
    return [
        Document(package.name, file, reading.text) for file, reading in readings
        if not reading.fault
    ]


def _from_json_lines(path: Path) -> Iterator[Document]:
    opened = lzma.open(path) if path.suffix == ".xz" else path.open("rb")
    with opened as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                document = Document(
                    fields.get("author", ""), fields.get("title", str(number)), fields["text"]
                )
            except (ValueError, KeyError, AttributeError) as error:
                raise UserError(
                    f'Line {number} of {path} is not a JSON object with a "text"; mend it.'
                ) from error
            for name, value in zip(("author", "title", "text"), document, strict=True):
                if not isinstance(value, str):
                    raise UserError(
                        f'The "{name}" in line {number} of {path} is not a string; mend it.'
                    )
            yield document
