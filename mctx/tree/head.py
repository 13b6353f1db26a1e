"""HEAD: the one small record that says which stored rows are the tree (design: law 6).

Rows are written first, where no reader looks; then HEAD is replaced in one atomic step and they
are part of the tree. HEAD lists, per level, *extents*: runs of logical rows and where they lie;
and the documents. When these are many they stand in an *index*, an immutable record which HEAD
names, and HEAD keeps the difference: so a commit costs the same in a tree of any size.

The record is a line `megacontext-tree FORMAT CRC32` and a line of JSON. The first stays as it is in
every later format, so an older program can tell "newer" from "damaged".
"""

import json
import uuid
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from mctx.errors import UserError
from mctx.levels import slots_by_level
from mctx.tree.documents import Documents
from mctx.tree.extents import Extents, common, count

FORMAT = 3
MAGIC = b"megacontext-tree"
KEY = "HEAD"
INLINE = 64  # extents and spans that HEAD lists itself
IDENTITY = "identity"  # the note by which a tree is told from another at the same place
PLAIN = ("epoch", "writer", "edition", "retired", "notes")


class TreeError(UserError):
    """What can go wrong with a tree on disk, said in one sentence."""


class StoreError(TreeError):
    """The storage failed to read or write; the tree is as it was, and one may try again."""


@contextmanager
def explained(sentence: str):
    """Turn a storage library's error into `StoreError(sentence (cause))`."""
    try:
        yield
    except TreeError:
        raise
    except Exception as error:
        cause = "".join(str(error).split(" [")[0].splitlines()[:1]) or type(error).__name__
        raise StoreError(f"{sentence} ({cause}).") from error


@dataclass(frozen=True)
class TreeSpec:
    """What a tree is made of; fixed when it is created.

    fanouts: K_1 … K_Lmax; slots, gist_width: a gist of level l is `[slots[l - 1], gist_width]`; one
    number stands for all levels; fingerprint: names the models whose gists these are; tokens are in
    [0, vocab_size).
    """

    fanouts: tuple[int, ...]
    slots: tuple[int, ...] | int
    gist_width: int
    fingerprint: str
    vocab_size: int

    def __post_init__(self):
        object.__setattr__(self, "fanouts", tuple(int(fanout) for fanout in self.fanouts))
        if not self.fanouts or min(self.fanouts) < 2:
            raise TreeError(f"Fanouts must be two or more at every level, not {self.fanouts}.")
        object.__setattr__(self, "slots", slots_by_level(self.slots, self.levels))
        if min(self.gist_width, self.vocab_size) < 1:
            raise TreeError(
                "A tree needs gist_width and vocab_size of at least 1, not "
                f"{self.gist_width} and {self.vocab_size}."
            )

    @property
    def pieces(self) -> tuple[int, ...]:
        """How many times the fewest slots of any level a gist of each level has, from level 1."""
        return tuple(each // min(self.slots) for each in self.slots)

    @property
    def levels(self) -> int:
        """The coarsest level, Lmax."""
        return len(self.fanouts)

    def span(self, level: int) -> int:
        """Tokens that a node of `level` covers; a node of level 0 is one block."""
        return int(np.prod(self.fanouts[: max(level, 1)], dtype=np.int64))


@dataclass(frozen=True)
class Head:
    """One committed state: `extents[0]` of the tokens, `extents[l]` of the gists of level l.

    Attributes:
      epoch: the newest writer's; writer: a random name, so that two who raced for one epoch, or a
        write whose answer was lost, can be told apart.
      edition: how often rows that were committed have been replaced; while it stays, logical rows
        stay what they were, wherever they lie.
      retired: epochs whose rows are no longer the tree's, and since when (Unix seconds).
      notes: small facts that a tool keeps with the tree.
    """

    spec: TreeSpec
    epoch: int
    writer: str
    extents: tuple[Extents, ...]
    documents: Documents = field(default_factory=Documents)
    edition: int = 0
    retired: tuple[tuple[int, float], ...] = ()
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "extents", tuple(Extents.of(each) for each in self.extents))

    def count(self, level: int) -> int:
        """Committed rows: tokens for level 0, gists above."""
        return count(self.extents[level])

    @classmethod
    def new(cls, spec: TreeSpec) -> "Head":
        """Of a tree that nobody has taken yet."""
        notes = {IDENTITY: uuid.uuid4().hex}
        return cls(spec, epoch=0, writer="", extents=((),) * (spec.levels + 1), notes=notes)

    def may_become(self, later: "Head") -> bool:
        """Whether `later` is of this tree, and not of another that was made at its place."""
        mine, since = self.notes.get(IDENTITY), later.notes.get(IDENTITY)
        if later.epoch == self.epoch and later.writer != self.writer:  # trees without the note
            return False
        return later.epoch >= self.epoch and mine in (None, since) and later.spec == self.spec

    def taken_by(self, writer: str, epochs: int = 1) -> "Head":
        """The same tree under `epochs` more epochs, which belong to `writer`."""
        return replace(self, epoch=self.epoch + epochs, writer=writer)


class Index(NamedTuple):
    """An immutable side record with what is too long for HEAD; `name` and `checksum` are in HEAD.

    HEAD lists, per level, how many of its first extents hold (`kept`) and what follows them.
    """

    name: str
    checksum: int
    extents: tuple[Extents, ...]
    documents: Documents

    @classmethod
    def made(cls, name: str, head: Head) -> tuple["Index", bytes]:
        """An index of all that `head` lists, and its record."""
        body = _json({"extents": _listed(head.extents), "documents": head.documents.spans})
        checksum = zlib.crc32(body)
        return cls(name, checksum, head.extents, head.documents), body

    @classmethod
    def read(cls, name: str, checksum: int, body: bytes, uri: str) -> "Index":
        if zlib.crc32(body) != checksum:
            raise TreeError(f"{name} of {uri} is damaged; restore the tree from a copy.")
        fields = json.loads(body)
        extents = tuple(Extents(each) for each in fields["extents"])
        return cls(name, checksum, extents, Documents(fields["documents"]))


def encode(head: Head, index: Index | None = None) -> bytes:
    """Head → the stored record, as the difference from `index` if there is one."""
    fields = {name: getattr(head, name) for name in PLAIN} | {"spec": asdict(head.spec)}
    kept = _kept(head, index)
    fields["extents"] = _listed(
        Extents(each.table[k:]) for each, k in zip(head.extents, kept, strict=True)
    )
    if index:
        fields["index"] = {"name": index.name, "checksum": index.checksum, "kept": kept}
    if not index or head.documents != index.documents:
        fields["documents"] = head.documents.spans
    body = _json(fields)
    return b"%s %d %08x\n%s\n" % (MAGIC, FORMAT, _checksum(FORMAT, body), body)


def decode(record: bytes, uri: str, find: Callable[[str, int], Index] | None = None) -> Head:
    """The stored record → Head.

    `find(name, checksum)` reads the index that the record names. TreeError when the record is
    foreign, damaged or of a newer format.
    """
    fields = _checked(record, uri)
    index = fields.pop("index", None)
    extents = tuple(Extents(each) for each in fields.pop("extents"))
    documents = fields.pop("documents", None)
    if index:
        found = find(index["name"], index["checksum"])
        pairs = zip(found.extents, index["kept"], extents, strict=True)
        extents = tuple(
            Extents(np.concatenate([old.table[:kept], new.table])) for old, kept, new in pairs
        )
        documents = found.documents if documents is None else documents
    fields["spec"] = TreeSpec(**fields["spec"])
    fields["retired"] = tuple((epoch, since) for epoch, since in fields.get("retired", ()))
    spans = documents if isinstance(documents, Documents) else Documents(documents or ())
    return Head(extents=extents, documents=spans, **fields)


def _checked(record: bytes, uri: str) -> dict:
    line, _, rest = record.partition(b"\n")
    words = line.split(b" ")
    if words[0] != MAGIC:
        raise TreeError(f"The HEAD of {uri} is not that of a MegaContext tree; check the path.")
    try:
        version, checksum = int(words[1]), words[2]
    except (IndexError, ValueError):
        version, checksum = 0, b""
    # A writer that is killed while it writes a file leaves its temporary one behind; TensorStore
    # writes the next record over that, and what was longer stands behind the record's end.
    body, end, _ = rest.partition(b"\n") if version > 1 else (rest, b"\n", b"")
    if not end or checksum != b"%08x" % _checksum(version, body):
        raise TreeError(f"The HEAD of {uri} is damaged; restore the tree from a copy.")
    if version > FORMAT:
        raise TreeError(
            f"The tree {uri} has format {version} and this program reads up to {FORMAT}; "
            "update MegaContext."
        )
    return json.loads(body)


def _json(value) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _listed(extents) -> list:
    return [each.table.tolist() for each in extents]


def _kept(head: Head, index: Index | None) -> list[int]:
    """By level, how many of the index's first extents are the head's."""
    if index is None:
        return [0] * len(head.extents)
    return [common(a, b) for a, b in zip(head.extents, index.extents, strict=True)]


def _checksum(version: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(b"%d\n" % version))


class HeadRecord:
    """HEAD and its index in a key-value store: read, and replaced by compare-and-swap."""

    def __init__(self, kvstore: ts.KvStore, uri: str):
        self._kvstore = kvstore
        self._uri = uri
        self._index: Index | None = None  # the one read or written last
        self._indices = 0  # written here

    def read(self) -> tuple[Head | None, bytes]:
        """(HEAD or None when there is none, the generation to replace it under)."""
        seen = None
        while True:
            with explained(f"The HEAD of {self._uri} cannot be read"):
                found = self._kvstore.read(KEY).result()
            try:
                head = None
                if found.state == "value":
                    head = decode(found.value, self._uri, self._find)
                return head, found.stamp.generation
            except _IndexGone as error:
                # A writer has published another HEAD meanwhile and removed the older index.
                if found.value == seen:
                    raise TreeError(f"{error}; restore the tree from a copy.") from error
                seen = found.value

    def replace(self, head: Head, generation: bytes) -> bytes | None:
        """Publish `head` if HEAD is still of `generation`; None when somebody was faster.

        A store across a network may take the write and lose the answer, and its retry then sees
        a new generation: our own. So a refusal counts only if HEAD is not what we wrote.

        Returns:
          The generation to replace it under the next time.
        """
        index = self._fitting(head)
        with explained(f"The HEAD of {self._uri} cannot be written"):
            record = encode(head, index)
            stamp = self._kvstore.write(KEY, record, if_equal=generation).result()
        generation = stamp.generation
        if generation == b"":
            current, generation = self.read()
            if current != head:
                return None
        outdated, self._index = self._index, index
        if outdated and outdated is not index and outdated.name.startswith(_folder(head)):
            # Ours; who is about to read it finds it gone and reads HEAD again. If this fails, the
            # next compaction removes it.
            self._kvstore.write(outdated.name, None).exception()
        return generation

    def take(self, head: Head, generation: bytes, epochs: int = 1) -> tuple[Head, bytes, int]:
        """HEAD under new epochs of our own, published before anything else is written.

        Returns:
          It, the generation to replace it under, and `epochs`.
        """
        taken = head.taken_by(uuid.uuid4().hex, epochs)
        generation = self.replace(taken, generation)
        if generation is None:
            raise TreeError(f"Another writer opened {self._uri} at the same moment; open it again.")
        return taken, generation, epochs

    @property
    def index(self) -> Index | None:
        """The index that the HEAD read or written last names, if it names one."""
        return self._index

    def forget_index(self) -> None:
        """Let the next index be a new one, in the folder of the epoch that writes it."""
        self._index = None

    def _fitting(self, head: Head) -> Index | None:
        """The index under which the head's record is short: none, the last one, or a new one."""
        if sum(map(len, head.extents)) + len(head.documents.spans) <= INLINE:
            return None
        index = self._index
        if index and head.documents == index.documents:
            new = sum(map(len, head.extents)) - sum(_kept(head, index))
            if new <= INLINE:
                return index
        self._indices += 1
        name = f"{_folder(head)}index-{head.writer[:8]}-{self._indices:06d}"
        index, body = Index.made(name, head)
        with explained(f"{name} of {self._uri} cannot be written"):
            self._kvstore.write(name, body).result()
        return index

    def _find(self, name: str, checksum: int) -> Index:
        if not (self._index and self._index.name == name):
            with explained(f"{name} of {self._uri} cannot be read"):
                found = self._kvstore.read(name).result()
            if found.state != "value":
                raise _IndexGone(f"{name} of {self._uri} is missing")
            self._index = Index.read(name, checksum, found.value, self._uri)
        return self._index


class _IndexGone(Exception):
    """HEAD names an index that is not there: HEAD is outdated, or the tree damaged."""


def epoch_folder(epoch: int) -> str:
    """Where all that an epoch's writer has written lies inside the tree's folder."""
    return f"epoch-{epoch:08d}/"


def _folder(head: Head) -> str:
    return epoch_folder(head.epoch)
