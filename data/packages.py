"""The domain `code`: Python files of packages, read, thinned, and rid of copies."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track
from rich.table import Table

from data import minhash, sources
from data.heldout import canonical
from data.sources import Package, Reading
from data.written import Document, Part, console

BYTES_PER_TOKEN = 3.4  # of Python, at 8,192 ids; for `--max-tokens` only
# In order of precedence: a text that is alike to one of an earlier group is left out.
HELD_OUT, VALID, TRAIN = range(3)


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


def read_all(
    groups: Sequence[tuple[int, Package]], pool: ProcessPoolExecutor
) -> list[Source]:
    """Read every file of (group, package) pairs; in order of group, package and path."""
    wanted = [
        (group, package, file)
        for group, package in sorted(groups, key=lambda pair: (pair[0], pair[1].name))
        for file in package.files
    ]
    roots, files = [package.root for _, package, _ in wanted], [file for _, _, file in wanted]
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
    signatures = np.stack([found[i].reading.signature for i in fit])
    copied = minhash.originals(signatures, np.array([found[i].group == HELD_OUT for i in fit]))
    for i, original in zip(fit, copied, strict=True):
        if original >= 0:
            mine, other = found[i].reading, found[fit[original]].reading
            fault = "exact copy" if mine.sha256 == other.sha256 else "near copy"
            marked[i] = found[i]._replace(reading=mine._replace(fault=fault))
    return marked


def gather(
    place: Path | None,
    held_out: Sequence[str],
    validation: Sequence[str],
    max_tokens: int | None,
    pool: ProcessPoolExecutor,
) -> dict[str, Part]:
    """The parts `train` and `valid`; arguments as in `data.corpus.build`."""
    held, valid = set(map(canonical, held_out)), set(map(canonical, validation))
    group = {**dict.fromkeys(valid, VALID), **dict.fromkeys(held, HELD_OUT)}
    packages = sources.packages_of(place)
    own = [package for package in packages if canonical(package.name) not in held]
    if max_tokens is not None:
        own = thin(own, max_tokens * BYTES_PER_TOKEN)
    kept_out = [package for package in packages if canonical(package.name) in held]
    if sources.STANDARD_LIBRARY in held:
        kept_out.append(sources.standard_library())
    pairs = [(group.get(canonical(package.name), TRAIN), package) for package in own + kept_out]
    found = deduplicate(read_all(pairs, pool))
    _show_dropped(found)
    names = {"held_out": sorted(held), "validation": sorted(valid)}
    parts = {}
    for part, which in (("train", TRAIN), ("valid", VALID)):
        mine = [source for source in found if source.group == which]
        faults = Counter(source.reading.fault for source in mine if source.reading.fault)
        documents = [
            Document(s.package.name, s.package.version, s.reading.text, s.reading.signature[None])
            for s in mine if not s.reading.fault
        ]
        parts[part] = Part(documents, {"dropped": dict(sorted(faults.items())), **names})
    return parts


def _show_dropped(found: list[Source]) -> None:
    table = Table("left out", "files", "for example", title="files of train and valid left out")
    dropped = [source for source in found if source.reading.fault and source.group != HELD_OUT]
    for fault, count in Counter(source.reading.fault for source in dropped).most_common():
        some = [f"{s.package.name}: {s.file}" for s in dropped if s.reading.fault == fault]
        examples = [some[i * len(some) // 3] for i in range(min(3, len(some)))]
        table.add_row(fault, f"{count:,}", "\n".join(examples))
    console.print(table)
