"""HEAD: the one small record that says which stored rows are the tree (design: law 6).

Rows are written first, where no reader looks; then HEAD is replaced in one atomic step and they
are part of the tree. HEAD lists, per array, *extents*: runs of logical rows and where they lie.

The record is one line `megacontext-tree FORMAT CRC32` and a JSON body. The line stays as it is in
every later format, so an older program can tell "newer" from "damaged".
"""

import json
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from mctx.errors import UserError

FORMAT = 1
MAGIC = b"megacontext-tree"
KEY = "HEAD"


class TreeError(UserError):
    """What can go wrong with a tree on disk, said in one sentence."""


@contextmanager
def explained(sentence: str):
    """Turn a storage library's error into `TreeError(sentence (cause))`."""
    try:
        yield
    except TreeError:
        raise
    except Exception as error:
        cause = str(error).split(" [")[0].splitlines()[0]
        raise TreeError(f"{sentence} ({cause}).") from error


@dataclass(frozen=True)
class TreeSpec:
    """What a tree is made of; fixed when it is created.

    fanouts: K_1 … K_Lmax; slots, gist_width: a gist is `[slots, gist_width]`;
    fingerprint: names the models whose gists these are; tokens are in [0, vocab_size).
    """

    fanouts: tuple[int, ...]
    slots: int
    gist_width: int
    fingerprint: str
    vocab_size: int

    def __post_init__(self):
        object.__setattr__(self, "fanouts", tuple(int(fanout) for fanout in self.fanouts))
        if not self.fanouts or min(self.fanouts) < 2:
            raise TreeError(f"Fanouts must be two or more at every level, not {self.fanouts}.")
        if min(self.slots, self.gist_width, self.vocab_size) < 1:
            raise TreeError(
                "A tree needs slots, gist_width and vocab_size of at least 1, not "
                f"{self.slots}, {self.gist_width} and {self.vocab_size}."
            )

    @property
    def levels(self) -> int:
        """The coarsest level, Lmax."""
        return len(self.fanouts)

    def span(self, level: int) -> int:
        """Tokens that a node of `level` covers; a node of level 0 is one block."""
        return int(np.prod(self.fanouts[: max(level, 1)], dtype=np.int64))


class Extent(NamedTuple):
    """Logical rows [start, start + length) are rows [row, row + length) of one epoch's array."""

    start: int
    epoch: int
    row: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


Extents = tuple[Extent, ...]  # in order of start, without a gap


def count(extents: Extents) -> int:
    """Logical rows in all."""
    return extents[-1].stop if extents else 0


def extended(extents: Extents, epoch: int, row: int, length: int) -> Extents:
    """`extents` and `length` rows more; neighbours merge, so a long session stays one extent."""
    if extents and extents[-1].epoch == epoch and extents[-1].row + extents[-1].length == row:
        last = extents[-1]
        return (*extents[:-1], last._replace(length=last.length + length))
    return (*extents, Extent(count(extents), epoch, row, length))


def pieces(extents: Extents, start: int, stop: int) -> list[Extent]:
    """The parts of `extents` that make up logical rows [start, stop)."""
    cut = []
    for extent in extents:
        low, high = max(start, extent.start), min(stop, extent.stop)
        if low < high:
            row = extent.row + low - extent.start
            cut.append(Extent(low, extent.epoch, row, high - low))
    return cut


def locate(extents: Extents, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where logical rows lie: (epoch [n], row [n])."""
    table = np.array(extents, np.int64).reshape(-1, len(Extent._fields))
    start, epoch, row, _ = table[np.searchsorted(table[:, 0], indices, side="right") - 1].T
    return epoch, row + indices - start


@dataclass(frozen=True)
class Head:
    """One committed state: `extents[0]` of the tokens, `extents[l]` of the gists of level l.

    epoch: the newest writer's; writer: a random name, so that two who raced for one epoch, or a
    write whose answer was lost, can be told apart.
    """

    spec: TreeSpec
    epoch: int
    writer: str
    extents: tuple[Extents, ...]

    def count(self, level: int) -> int:
        """Committed rows: tokens for level 0, gists above."""
        return count(self.extents[level])

    def taken_by(self, writer: str) -> "Head":
        """The same tree under the next epoch, which belongs to `writer`."""
        return replace(self, epoch=self.epoch + 1, writer=writer)


def encode(head: Head) -> bytes:
    """Head → the stored record."""
    body = json.dumps(asdict(head), separators=(",", ":")).encode()
    return b"%s %d %08x\n%s" % (MAGIC, FORMAT, _checksum(FORMAT, body), body)


def decode(record: bytes, uri: str) -> Head:
    """The stored record → Head; TreeError when it is foreign, damaged or of a newer format."""
    line, _, body = record.partition(b"\n")
    words = line.split(b" ")
    if words[0] != MAGIC:
        raise TreeError(f"The HEAD of {uri} is not that of a MegaContext tree; check the path.")
    try:
        version, checksum = int(words[1]), words[2]
    except (IndexError, ValueError):
        version, checksum = 0, b""
    if checksum != b"%08x" % _checksum(version, body):
        raise TreeError(f"The HEAD of {uri} is damaged; restore the tree from a copy.")
    if version > FORMAT:
        raise TreeError(
            f"The tree {uri} has format {version} and this program reads up to {FORMAT}; "
            "update MegaContext."
        )
    fields = json.loads(body)
    fields["spec"] = TreeSpec(**fields["spec"])
    fields["extents"] = tuple(
        tuple(Extent(*extent) for extent in extents) for extents in fields["extents"]
    )
    return Head(**fields)


def _checksum(version: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(b"%d\n" % version))


class HeadRecord:
    """HEAD in a key-value store: read, and replaced by compare-and-swap."""

    def __init__(self, kvstore: ts.KvStore, uri: str):
        self._kvstore = kvstore
        self._uri = uri

    def read(self) -> tuple[Head | None, bytes]:
        """(HEAD or None when there is none, the generation to replace it under)."""
        with explained(f"The HEAD of {self._uri} cannot be read"):
            found = self._kvstore.read(KEY).result()
        head = decode(found.value, self._uri) if found.state == "value" else None
        return head, found.stamp.generation

    def replace(self, head: Head, generation: bytes) -> bool:
        """Publish `head` if HEAD is still of `generation`; False when somebody was faster.

        A store across a network may take the write and lose the answer, and its retry then sees
        a new generation: our own. So a refusal counts only if HEAD is not what we wrote.
        """
        with explained(f"The HEAD of {self._uri} cannot be written"):
            stamp = self._kvstore.write(KEY, encode(head), if_equal=generation).result()
        return stamp.generation != b"" or self.read()[0] == head
