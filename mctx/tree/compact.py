"""Compaction: gives back the room of rows that the history no longer refers to.

Replaced and deleted rows lie among others in the arrays of the epoch that wrote them. Compaction
copies what is still referred to into a new epoch, publishes it there piece by piece, and retires
the old epochs: HEAD lists them with the time. A retired epoch's folder is deleted by a compaction
that comes at least `grace` seconds later.

Readers are not asked. One that holds an older HEAD goes on reading the old folders until they are
deleted; then it finds its rows gone, reads HEAD, and as long as nothing it knows was *replaced*
(`Head.edition`) it reads the same rows where they lie now, unnoticed. If something was, it could
only get a mix, and so is told to refresh. The grace period makes that rare; 0 is safe.

Every step leaves a valid tree. Interrupted, a compaction is simply run again: what it has
published stays, and folders that nobody refers to are retired by the next one.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from mctx.tree import arrays as stored
from mctx.tree.extents import Extent, stored_rows
from mctx.tree.head import TreeError, epoch_folder, explained
from mctx.tree.store import Tree

COPY_BYTES = 2**26  # held in memory at once, and published together
GRACE = 3600.0  # seconds


class Compacted(NamedTuple):
    """copied, wasted: bytes of rows; deleted: epochs whose folders went; retired: those waiting."""

    copied: int
    wasted: int
    deleted: tuple[int, ...]
    retired: tuple[int, ...]


def usage(tree: Tree) -> dict[int, tuple[int, int]]:
    """By epoch, bytes of the rows that the history refers to, and of all up to the last of them; of
    a level none of whose rows in the epoch it refers to, as after a rebuild, of all files."""
    found: dict[int, tuple[int, int]] = {}
    for level in range(tree.spec.levels + 1):
        row, table = stored.row_bytes(tree.spec, level), tree.extents(level).table
        for epoch, rows in stored_rows(tree.extents(level)).items():
            here = table[table[:, 1] == epoch]
            used, size = found.get(epoch, (0, 0))
            last = int((here[:, 2] + here[:, 3]).max())
            found[epoch] = used + rows * row, size + last * row
    for (level, epoch), files in _files(tree).items():
        if epoch in found and epoch not in stored_rows(tree.extents(level)):
            used, size = found[epoch]
            found[epoch] = used, size + files * _file_bytes(tree, level, epoch)
    return found


def compact(
    tree: Tree,
    least: float = 0.0,
    grace: float = GRACE,
    progress: Callable[[int, int], None] | None = None,
) -> Compacted:
    """Gives back what can be, and leaves the tree open for writing.

    Args:
      tree: open for writing, nothing staged: `commit` first. It goes on under a new epoch.
      least: epochs are copied when more than this share of them is waste.
      grace: seconds for which a retired epoch stays, for the readers of older HEADs.
      progress: told (bytes copied, bytes to copy) after every piece.

    Raises:
      TreeError: not open for writing, taken over by another writer, or a row cannot be read.
    """
    if tree.staged:
        raise TreeError(f"Something is staged in {tree.uri}; commit before you compact it.")
    tree.renew()
    worn = {
        epoch: size - used
        for epoch, (used, size) in usage(tree).items()
        if size - used > least * size and epoch != tree.epoch
    }
    groups = [
        (level, group)
        for level in range(tree.spec.levels + 1)
        for group in _groups(tree, level, worn)
    ]
    total, copied = sum(_bytes(tree, *each) for each in groups), 0
    for level, group in groups:
        _move(tree, level, group)
        tree.commit()
        copied += _bytes(tree, level, group)
        if progress:
            progress(copied, total)
    deleted, retired = _retire(tree, grace)
    return Compacted(copied, sum(worn.values()), deleted, retired)


def _groups(tree: Tree, level: int, epochs) -> list[list[Extent]]:
    """The level's extents in some epochs, in portions that are copied at once."""
    most = max(1, COPY_BYTES // stored.row_bytes(tree.spec, level))
    groups, room = [], 0
    for start, epoch, row, length in tree.extents(level):
        at = 0
        while epoch in epochs and at < length:
            if not room:
                groups.append([])
                room = most
            size = min(room, length - at)
            groups[-1].append(Extent(start + at, epoch, row + at, size))
            at, room = at + size, room - size
    return groups


def _bytes(tree: Tree, level: int, group: list[Extent]) -> int:
    return sum(part.length for part in group) * stored.row_bytes(tree.spec, level)


def _move(tree: Tree, level: int, group: list[Extent]) -> None:
    """Copies rows behind those that this epoch has, and stages their new place."""
    row = tree.store(level, np.concatenate(tree.read_parts(level, group)))
    for part in group:
        tree.place(level, part.start, tree.epoch, row, part.length)
        row += part.length


def _retire(tree: Tree, grace: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Deletes and retires the folders of epochs without a row; which were deleted, and retired."""
    unused = _folders(tree.kvstore, tree.uri) - set(usage(tree)) - {tree.epoch}
    now, since = time.time(), dict(tree.head.retired)
    since = {epoch: since.get(epoch, now) for epoch in sorted(unused)}
    due = tuple(epoch for epoch, then in since.items() if now - then >= grace)
    waiting = tuple((epoch, then) for epoch, then in since.items() if epoch not in due)
    tree.retire(waiting)
    for epoch in due:
        folder = epoch_folder(epoch)
        with explained(f"{folder} of {tree.uri} cannot be deleted"):
            tree.kvstore.delete_range(ts.KvStore.KeyRange(folder, folder[:-1] + "0")).result()
    return due, tuple(epoch for epoch, _ in waiting)


def _folders(kvstore: ts.KvStore, uri: str) -> set[int]:
    """The epochs that have a folder with anything in it."""
    return {int(match[1]) for match in _listing(kvstore, uri, rb"epoch-(\d+)/")}


def _files(tree: Tree) -> Counter[tuple[int, int]]:
    """How many files the arrays have, by level and epoch."""
    named = _listing(tree.kvstore, tree.uri, rb"epoch-(\d+)/(?:tokens|lod(\d+))/c\.")
    return Counter((int(match[2] or 0), int(match[1])) for match in named)


def _file_bytes(tree: Tree, level: int, epoch: int) -> int:
    """Of a full file of an array, which may be of a tree of other gists than now."""
    key = f"{stored.array_folder(level, epoch)}zarr.json"
    with explained(f"{key} of {tree.uri} cannot be read"):
        facts = json.loads(tree.kvstore.read(key).result().value)
        shape = facts["chunk_grid"]["configuration"]["chunk_shape"]
        return math.prod(shape) * np.dtype(facts["data_type"]).itemsize


def _listing(kvstore: ts.KvStore, uri: str, pattern: bytes) -> list[re.Match]:
    """What of the keys of all epochs begins as wanted."""
    with explained(f"{uri} cannot be listed"):
        keys = kvstore.list(ts.KvStore.KeyRange("epoch-", "epoch.")).result()
    return [match for match in (re.match(pattern, key) for key in keys) if match]
