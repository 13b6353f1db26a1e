"""Build a training and a validation corpus out of installed packages, or of a folder of text.

    python -m data.corpus --out=DIR

writes `DIR/train` and `DIR/valid`, each with

    tokens.npy      uint16 (uint32 past 65,536 ids), flat; every document ends with `<eot>`
    documents.npy   int64 [n, 3]: start, stop, index of the package; packages are consecutive
    manifest.json   what is in it, and what was left out
    sketch.npy      which texts are in it, in 200 KB (`data.minhash.sketch`)
    tokenizer.json  the same in both

Vendored copies, generated files, tables and near-duplicates are left out, and so is every file
that is alike to one of a held-out package (`data.heldout`) or of the standard library. The same
sources give the same corpus.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data import bpe, minhash, sources
from data.heldout import TEST, VALIDATION, canonical
from data.sources import Package, Reading
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

TOKENIZER_SAMPLE = 60_000_000  # characters: enough for 8,192 ids, and trained in seconds
BYTES_PER_TOKEN = 3.4  # of Python, at 8,192 ids; for `--max-tokens` only
ENCODE_BATCH = 1_024  # documents
# In order of precedence: a file that is alike to one of an earlier group is left out.
HELD_OUT, VALID, TRAIN = range(3)

console = Console(stderr=True)


class Source(NamedTuple):
    """A file on its way into a corpus."""

    package: Package
    file: str
    group: int  # HELD_OUT, VALID or TRAIN
    reading: Reading


def _by_hash(text: str) -> float:
    """A number in [0, 1) that a text always gets."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def thin(packages: list[Package], max_bytes: float) -> list[Package]:
    """Keep about `max_bytes` of files, chosen by a hash of their names, evenly over packages."""
    sizes = {
        (package.name, file): (package.root / file).stat().st_size
        for package in packages for file in package.files if (package.root / file).is_file()
    }
    share = max_bytes / max(1, sum(sizes.values()))
    return [
        package._replace(files=tuple(
            file for file in package.files if _by_hash(f"{package.name}/{file}") < share
        ))
        for package in packages
    ]


def read_all(groups: Sequence[tuple[int, Package]], processes: int) -> list[Source]:
    """Read every file of (group, package) pairs; in order of group, package and path."""
    wanted = [
        (group, package, file)
        for group, package in sorted(groups, key=lambda pair: (pair[0], pair[1].name))
        for file in package.files
    ]
    roots, files = [package.root for _, package, _ in wanted], [file for _, _, file in wanted]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        readings = pool.map(sources.read, roots, files, chunksize=64)
        return [
            Source(package, file, group, reading)
            for (group, package, file), reading in zip(
                wanted, track(readings, "reading", len(wanted), console=console), strict=True
            )
        ]


def deduplicate(found: list[Source]) -> list[Source]:
    """Mark every file that copies one before it: `exact copy` or `near copy` becomes its fault."""
    fit = [i for i, source in enumerate(found) if not source.reading.fault]
    if not fit:
        return found
    marked = list(found)
    copied = minhash.originals(np.stack([found[i].reading.signature for i in fit]))
    for i, original in zip(fit, copied, strict=True):
        if original >= 0:
            mine, other = found[i].reading, found[fit[original]].reading
            fault = "exact copy" if mine.sha256 == other.sha256 else "near copy"
            marked[i] = found[i]._replace(reading=mine._replace(fault=fault))
    return marked


def tokenizer_sample(texts: Sequence[str]) -> list[str]:
    """Texts in a fixed random order, up to `TOKENIZER_SAMPLE` characters."""
    order = np.random.default_rng(0).permutation(len(texts))
    ends = np.cumsum([len(texts[i]) for i in order])
    return [texts[i] for i in order[: np.searchsorted(ends, TOKENIZER_SAMPLE) + 1]]


def write(directory: Path, kept: list[Source], tokenizer: Tokenizer, about: dict) -> int:
    """Encode files, in order, and write a corpus of them; returns its number of tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    end = np.array([tokenizer.eot_id], dtype)
    pieces: list[np.ndarray] = []
    batches = range(0, len(kept), ENCODE_BATCH)
    for first in track(batches, f"encoding {directory.name}", console=console):
        texts = [source.reading.text for source in kept[first : first + ENCODE_BATCH]]
        pieces += [np.append(ids.astype(dtype), end) for ids in tokenizer.encode_batch(texts)]
    stops = np.cumsum([len(piece) for piece in pieces])
    names = {name: i for i, name in enumerate(dict.fromkeys(s.package.name for s in kept))}
    owner = np.array([names[source.package.name] for source in kept])
    documents = np.stack([np.append(0, stops[:-1]), stops, owner], axis=1)
    packages = []
    for name, index in names.items():
        mine = [source for source in kept if source.package.name == name]
        digest = hashlib.sha256("".join(source.reading.sha256 for source in mine).encode())
        tokens = int(np.diff(documents[owner == index, :2]).sum())
        packages.append({
            "name": name, "version": mine[0].package.version, "files": len(mine),
            "tokens": tokens, "sha256": digest.hexdigest(),
        })
    manifest = {
        "tokens": int(stops[-1]), "documents": len(kept), "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint, "python": platform.python_version(), **about,
        "packages": packages,
    }
    np.save(directory / "tokens.npy", np.concatenate(pieces))
    np.save(directory / "documents.npy", documents)
    sketch = minhash.sketch(np.stack([source.reading.signature for source in kept]))
    np.save(directory / "sketch.npy", sketch)
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1))
    tokenizer.save(directory)
    return manifest["tokens"]


def _show_dropped(found: list[Source]) -> None:
    table = Table("left out", "files", "for example", title="files of train and valid left out")
    dropped = [source for source in found if source.reading.fault and source.group != HELD_OUT]
    for fault, count in Counter(source.reading.fault for source in dropped).most_common():
        some = [f"{s.package.name}: {s.file}" for s in dropped if s.reading.fault == fault]
        examples = [some[i * len(some) // 3] for i in range(min(3, len(some)))]
        table.add_row(fault, f"{count:,}", "\n".join(examples))
    console.print(table)


def build(
    out: Path,
    place: Path | None = None,
    held_out: Sequence[str] = TEST,
    validation: Sequence[str] = VALIDATION,
    max_tokens: int | None = None,
    vocab_size: int = 8_192,
    tokenizer: Path | None = None,
    processes: int | None = None,
) -> dict[str, int]:
    """Build `out/train` and, where a validation package is found, `out/valid`.

    Args:
      out: directory to write to; made if need be.
      place: a site-packages folder or a folder of text; None for this interpreter's packages.
      held_out: names of packages that neither corpus may hold, nor near-copies of their files;
        `python` is the standard library.
      validation: names of packages that make up the validation corpus.
      max_tokens: about how many tokens to keep; None for all.
      vocab_size: ids of the tokenizer to train.
      tokenizer: a tokenizer to use instead of training one.
      processes: how many to read with; None for one a core.

    Returns:
      tokens written, by corpus name.

    Raises:
      UserError: `place` or `tokenizer` does not exist, or no file is fit to train on.
    """
    ready = Tokenizer.load(tokenizer) if tokenizer else None
    held, valid = set(map(canonical, held_out)), set(map(canonical, validation))
    group = {**dict.fromkeys(valid, VALID), **dict.fromkeys(held, HELD_OUT)}
    packages = sources.packages_of(place)
    own = [package for package in packages if canonical(package.name) not in held]
    if max_tokens is not None:
        own = thin(own, max_tokens * BYTES_PER_TOKEN)
    kept_out = [package for package in packages if canonical(package.name) in held]
    if sources.STANDARD_LIBRARY in held:
        kept_out.append(sources.standard_library())
    found = deduplicate(read_all(
        [(group.get(canonical(package.name), TRAIN), package) for package in own + kept_out],
        processes or os.cpu_count() or 1,
    ))
    _show_dropped(found)
    fit = {
        name: [source for source in found if source.group == which and not source.reading.fault]
        for name, which in (("train", TRAIN), ("valid", VALID))
    }
    if not fit["train"]:
        raise UserError("No file is fit to train on; name a folder with more text in --packages.")
    if ready is None:
        sample = tokenizer_sample([source.reading.text for source in fit["train"]])
        with console.status(f"training a tokenizer of {vocab_size} ids on {len(sample)} files"):
            ready = bpe.train(sample, vocab_size)
    written = {}
    for name, kept in fit.items():
        if kept:
            faults = Counter(s.reading.fault for s in found if s.group == kept[0].group)
            dropped = {fault: count for fault, count in sorted(faults.items()) if fault}
            about = {"dropped": dropped, "held_out": sorted(held), "validation": sorted(valid)}
            written[name] = write(out / name, kept, ready, about)
            console.print(f"{out / name}: {written[name]:,} tokens, {len(kept):,} files")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.corpus", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory to write train/ and valid/ to")
    add("--packages", type=Path, metavar="PATH",
        help="site-packages folder or folder of text (default: this interpreter's packages)")
    add("--exclude", nargs="*", default=[], metavar="NAME", help="more packages to hold out")
    add("--exclude-file", type=Path, metavar="FILE", help="a file of such names, one a line")
    add("--validation", nargs="*", default=VALIDATION, metavar="NAME",
        help="packages of the validation corpus (default: those of data/heldout.py)")
    add("--max-tokens", type=int, metavar="N", help="keep about this many tokens")
    add("--vocab-size", type=int, default=8_192, metavar="N")
    add("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json; train none")
    add("--processes", type=int, metavar="N", help="processes to read with (default: the cores)")
    args = parser.parse_args(arguments)
    try:
        if args.exclude_file and not args.exclude_file.is_file():
            raise UserError(f"There is no file {args.exclude_file}; name one with --exclude-file.")
        more = args.exclude_file.read_text().split() if args.exclude_file else []
        build(
            args.out, args.packages, (*TEST, *args.exclude, *more), args.validation,
            args.max_tokens, args.vocab_size, args.tokenizer, args.processes,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
