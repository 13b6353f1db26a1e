"""Where text comes from: installed packages, the standard library, folders; and what is no text.

A `Package` is a named list of files; `read` turns one file into text with its hash and MinHash
signature, or says why it is unfit to learn from.
"""

import hashlib
import importlib.metadata
import platform
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import minhash
from data.heldout import canonical
from mctx.errors import UserError

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")
SMALLEST, LARGEST = 400, 512 * 1024  # bytes
LONGEST_LINE = 1_000  # characters

VENDORED = frozenset(
    "_vendor vendor _vendored vendored _vendorized third_party thirdparty _thirdparty extern "
    "_extern _external externals site-packages dist-packages".split()
)
_GENERATED_NAME = re.compile(r"(_pb2|_pb2_grpc)\.py$")
# A notice is a comment, or calls the file generated; prose may speak of what else is generated.
_GENERATED = re.compile(
    r"^\s*#.*(auto-?generated|automatically generated|generated (by|from)|do not (edit|modify))"
    r"|this (file|module|code)\b.{0,40}\bgenerated|@generated",
    re.IGNORECASE | re.MULTILINE,
)
_GENERATED_WITHIN = 1_500  # characters: a notice stands at the top of its file


class Package(NamedTuple):
    """A distribution, or a folder taken for one."""

    name: str
    version: str
    root: Path
    files: tuple[str, ...]  # relative to root, sorted


class Reading(NamedTuple):
    """One file as read; `fault` is empty, or says in a word why the file is left out."""

    text: str
    sha256: str
    signature: np.ndarray  # uint32 [minhash.PERMUTATIONS]
    fault: str


def site_folders() -> list[Path]:
    """The running interpreter's site-packages."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths[kind]).resolve() for kind in ("purelib", "platlib")})


def installed(folders: Iterable[Path]) -> list[Package]:
    """The distributions installed in site-packages folders, with their Python files, by name."""
    found: dict[str, Package] = {}
    for folder in folders:
        for distribution in importlib.metadata.distributions(path=[str(folder)]):
            files = tuple(sorted(
                str(file) for file in distribution.files or ()
                if file.suffix == ".py" and ".." not in file.parts
            ))
            name = canonical(distribution.metadata["Name"] or "")
            if name and files:
                found.setdefault(name, Package(name, distribution.version, Path(folder), files))
    return [found[name] for name in sorted(found)]


STANDARD_LIBRARY = "python"


def standard_library() -> Package:
    """The running interpreter's standard library, as a package named `python`."""
    root = Path(sysconfig.get_paths()["stdlib"]).resolve()
    files = (file.relative_to(root) for file in root.rglob("*.py"))
    own = sorted(str(file) for file in files if not VENDORED.intersection(file.parts))
    return Package(STANDARD_LIBRARY, platform.python_version(), root, tuple(own))


def folder(root: Path) -> list[Package]:
    """A folder of text as packages: one for each folder in it, and one for the loose files.

    Raises:
      UserError: the folder does not exist, or holds no file with a suffix of `TEXT_SUFFIXES`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; name an existing one.")
    files: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*")):
        if file.suffix in TEXT_SUFFIXES and file.is_file():
            relative = file.relative_to(root)
            name = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
            files.setdefault(name, []).append(str(relative))
    if not files:
        raise UserError(f"The folder {root} holds no {', '.join(TEXT_SUFFIXES)} files.")
    return [Package(name, "", root, tuple(files[name])) for name in sorted(files)]


def packages_of(place: Path | None) -> list[Package]:
    """Packages of a site-packages folder, of a folder of text, or (None) of this interpreter."""
    if place is None:
        return installed(site_folders())
    return installed([place]) if any(place.glob("*.dist-info")) else folder(place)


def _code_fault(text: str) -> str:
    """Why Python source is unfit to learn from: generated, or a table; empty when it is fit."""
    if _GENERATED.search(text[:_GENERATED_WITHIN]):
        return "generated"
    if max(map(len, text.splitlines())) > LONGEST_LINE:
        return "long lines"
    raw = np.frombuffer(text.encode(), np.uint8)
    digits = np.count_nonzero((raw >= ord("0")) & (raw <= ord("9")))
    visible = np.count_nonzero(raw > ord(" "))
    letters = np.count_nonzero(((raw | 32) >= ord("a")) & ((raw | 32) <= ord("z")))
    return "table" if digits > 0.2 * visible or letters <= 0.4 * visible else ""


def decode(raw: bytes) -> str:
    """UTF-8 text with `\\n` line ends and no byte order mark; raises UnicodeDecodeError."""
    return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read(root: Path, file: str) -> Reading:
    """Read one file of a package; Python files are also checked for being code a person wrote."""

    def unfit(fault: str) -> Reading:
        return Reading("", "", np.zeros(minhash.PERMUTATIONS, np.uint32), fault)

    path = root / file
    is_code = path.suffix == ".py"
    if VENDORED.intersection(Path(file).parts[:-1]):
        return unfit("vendored")
    if _GENERATED_NAME.search(file):
        return unfit("generated")
    try:
        raw = path.read_bytes()
        if len(raw) < SMALLEST:
            return unfit("small")
        if is_code and len(raw) > LARGEST:
            return unfit("large")
        text = decode(raw)
    except OSError:
        return unfit("unreadable")
    except UnicodeDecodeError:
        return unfit("not UTF-8")
    fault = _code_fault(text) if is_code else ""
    if fault:
        return unfit(fault)
    return Reading(text, hashlib.sha256(text.encode()).hexdigest(), minhash.signature(text), "")
