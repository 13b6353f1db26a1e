"""Walks a tree and says what is wrong with it: HEAD, counts, extents, documents, every chunk."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mctx.tree import arrays as stored
from mctx.tree.arrays import Arrays
from mctx.tree.documents import is_name, joined_runs
from mctx.tree.extents import DEAD, Extent, Extents, pieces
from mctx.tree.head import KEY, Head, HeadRecord, TreeError, explained

READ_BYTES = 2**24  # at once
SHOWN = 20  # problems of one level that are listed; the rest are counted

Progress = Callable[[int, int], None]  # bytes read, bytes in all


class Report(NamedTuple):
    """Attributes:
    counts: tokens, then gists by level. bytes: that were read, all of them checked.
    missing: by level, gists whose children are complete but which were never added.
    documents: their number. dead: blocks that are dead.
    orphans: epochs on disk to which nothing refers: `compact` removes them.
    foreign: names in the tree's folder that no tree has written.
    problems: sentences; a sound tree has none.
    """

    uri: str
    epoch: int
    fingerprint: str
    counts: list[int]
    bytes: int
    missing: dict[int, int]
    documents: int
    dead: int
    orphans: list[int]
    foreign: list[str]
    problems: list[str]


def verify(
    uri: str, fingerprint: str | None = None, progress: Progress = lambda done, total: None
) -> Report:
    """Reads all of a tree.

    Args:
      fingerprint: of the models that should have made the gists, if that is asked.

    Raises:
      TreeError: there is no tree, or no HEAD that can be read: then nothing else can be said.
    """
    kvstore = stored.open_kvstore(uri)
    record = HeadRecord(kvstore, uri)
    head, _ = record.read()
    if head is None:
        raise TreeError(f"There is no MegaContext tree at {uri}; check the path.")
    problems = [*_counts(head), *_documents(head)]
    if fingerprint not in (None, head.spec.fingerprint):
        problems.append(
            f"The gists were made by models {head.spec.fingerprint!r}, not by {fingerprint!r}."
        )
    sound = []
    for level, extents in enumerate(head.extents):
        wrong = list(_extents(head, level, extents))
        problems += wrong
        if not wrong:
            sound.append(level)
    walk = _Walk(Arrays(kvstore, uri, head.spec), head, sound, progress)
    problems += walk.run()
    with explained(f"{uri} cannot be listed"):
        names = [key.decode() for key in kvstore.list().result()]
    epochs, foreign = _names(names)
    used = {epoch for each in head.extents for epoch in each.table[:, 1].tolist()}
    used |= _names([record.index.name])[0] if record.index else set()
    return Report(
        uri=str(uri),
        epoch=head.epoch,
        fingerprint=head.spec.fingerprint,
        counts=[head.count(level) for level in range(head.spec.levels + 1)],
        bytes=walk.done,
        missing=_missing(head),
        documents=len(head.documents),
        dead=int(np.diff(head.documents.dead(head.spec.fanouts[0])).sum()),
        orphans=sorted(epochs - used - {head.epoch}),
        foreign=foreign,
        problems=problems,
    )


def _counts(head: Head) -> Iterator[str]:
    for level in range(1, head.spec.levels + 1):
        most = head.count(0) // head.spec.span(level)
        if head.count(level) > most:
            yield (
                f"HEAD lists {head.count(level)} gists of level {level}, and the "
                f"{head.count(0)} tokens make {most}."
            )


def _missing(head: Head) -> dict[int, int]:
    spans = {level: head.spec.span(level) for level in range(1, head.spec.levels + 1)}
    short = {level: head.count(0) // span - head.count(level) for level, span in spans.items()}
    return {level: count for level, count in short.items() if count > 0}


def _documents(head: Head) -> Iterator[str]:
    block, names, end = head.spec.fanouts[0], set(), 0
    for name, _, start, stop, length in head.documents.spans:
        what = f"The span of {name or 'a deleted document'!r}, tokens {start} to {stop},"
        if start < end or stop <= start or stop > head.count(0):
            yield f"{what} overlaps another, is empty, or lies outside the history."
        if start % block or stop % block or not 0 <= length <= stop - start:
            yield f"{what} is not of whole blocks, or shorter than its {length} tokens."
        if name != "" and not is_name(name):
            yield f"{what} has a name that is no text."
        elif name and name in names:
            yield f"{what} has the name of another document."
        names.add(str(name))
        end = max(end, stop)


def _extents(head: Head, level: int, extents: Extents) -> Iterator[str]:
    """Faults of a list of extents; a level that has some is not read."""
    start, epoch, row, length = extents.table.T
    if (length <= 0).any() or (row < 0).any() or (row + length > stored.ROWS).any():
        yield f"HEAD lists impossible rows of level {level}."
    if (start != np.cumsum(length) - length).any():
        yield f"The extents of level {level} in HEAD have a gap or overlap."
    if (epoch < DEAD).any() or (epoch > head.epoch).any():
        yield f"HEAD lists rows of level {level} that an epoch after {head.epoch} wrote."
    used = extents.table[epoch != DEAD]
    used = used[np.lexsort((used[:, 2], used[:, 1]))]
    same = used[1:, 1] == used[:-1, 1]
    if (same & (used[1:, 2] < used[:-1, 2] + used[:-1, 3])).any():
        yield f"HEAD lists a stored row of level {level} twice."
    dead = extents.table[epoch == DEAD][:, [0, 3]]
    runs = joined_runs(np.stack([dead[:, 0], dead.sum(axis=1)], axis=1))
    blocks = head.documents.dead(head.spec.fanouts[0])
    wide = {0: head.spec.fanouts[0], 1: 1}.get(level)
    if wide and not np.array_equal(runs, blocks * wide):
        yield f"The dead rows of level {level} are not those of the documents' dead blocks."


class _Fault(NamedTuple):
    """Logical rows [start, stop) of a level, and what is wrong with them."""

    start: int
    stop: int
    what: str


class _Walk:
    """Reads the rows of the levels given, and looks at every value."""

    def __init__(self, arrays: Arrays, head: Head, levels: list[int], progress: Progress):
        self._arrays, self._head, self._levels, self._progress = arrays, head, levels, progress
        self._sizes = [stored.row_bytes(head.spec, n) for n in range(head.spec.levels + 1)]
        live = (head.extents[level].table for level in levels)
        rows = [int(table[table[:, 1] != DEAD][:, 3].sum()) for table in live]
        self._total = sum(n * self._sizes[at] for n, at in zip(rows, levels, strict=True))
        self.done = 0

    def run(self) -> list[str]:
        return [problem for level in self._levels for problem in self._level(level)]

    def _level(self, level: int) -> list[str]:
        step, faults = max(1, READ_BYTES // self._sizes[level]), []
        for start in range(0, self._head.count(level), step):
            stop = min(start + step, self._head.count(level))
            parts = [p for p in pieces(self._head.extents[level], start, stop) if p.epoch != DEAD]
            for fault in self._read(level, parts):
                last = faults[-1] if faults else None
                if last and last.stop == fault.start and last.what[:20] == fault.what[:20]:
                    faults[-1] = last._replace(stop=fault.stop)
                else:
                    faults.append(fault)
            self.done += sum(part.length for part in parts) * self._sizes[level]
            self._progress(self.done, self._total)
        said = [f"Level {level}, rows {a} to {b - 1} {what}." for a, b, what in faults[:SHOWN]]
        if len(faults) > SHOWN:
            said.append(f"Level {level} has {len(faults) - SHOWN} more such problems.")
        return said

    def _read(self, level: int, parts: list[Extent]) -> Iterator[_Fault]:
        """Faults of some parts; those that cannot be read are halved down to the chunk."""
        try:
            values = self._arrays.read_parts(level, parts)
        except TreeError as error:
            start, stop = parts[0].start, parts[-1].stop
            if stop - start <= stored.rows_in(stored.CHUNK_BYTES, self._head.spec, level):
                cause = str(error.__cause__ or error).split(" [")[0].splitlines()[0]
                yield _Fault(start, stop, f"cannot be read ({cause})")
                return
            middle = (start + stop) // 2
            for half in (_cut(parts, 0, middle), _cut(parts, middle, stop)):
                if half:
                    yield from self._read(level, half)
            return
        for part, found in zip(parts, values, strict=True):
            yield from (self._gists if level else self._tokens)(part, found)

    def _tokens(self, part: Extent, tokens: np.ndarray) -> Iterator[_Fault]:
        size = self._head.spec.vocab_size
        wrong = np.flatnonzero((tokens < 0) | (tokens >= size))
        if len(wrong):
            yield _among(part, wrong, f"hold tokens outside the vocabulary of {size}")

    def _gists(self, part: Extent, bits: np.ndarray) -> Iterator[_Fault]:
        # An exponent of ones is infinity or NaN.
        wrong = np.flatnonzero(((bits & 0x7F80) == 0x7F80).any(axis=(1, 2)))
        if len(wrong):
            yield _among(part, wrong, "hold NaN or infinity")


def _among(part: Extent, wrong: np.ndarray, what: str) -> _Fault:
    return _Fault(part.start + int(wrong[0]), part.start + int(wrong[-1]) + 1, what)


def _cut(parts: list[Extent], start: int, stop: int) -> list[Extent]:
    """What of some parts lies in logical rows [start, stop)."""
    some = (part for part in parts if part.start < stop and part.stop > start)
    return [cut for part in some for cut in pieces(Extents([part]), start, stop)]


def _names(names: list[str]) -> tuple[set[int], list[str]]:
    """(epochs that have files, names that are no tree's)."""
    epochs, foreign = set(), []
    for name in names:
        found = re.match(r"epoch-(\d+)/(tokens/|lod\d+/|index-|part-)", name)
        if found:
            epochs.add(int(found[1]))
        elif name != KEY and not name.startswith("session-"):
            foreign.append(name)
    return epochs, sorted(foreign)
