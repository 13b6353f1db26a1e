"""Many processes write one timeline, each its own extents (design: Scale).

The history that is to be added is cut into pieces of whole windows; piece i is read by process
i mod P. A process writes tokens and LOD1 gists to the arrays of an epoch of its own, durably, and
then reports the piece in a *part record*. The lead, process 0, adopts pieces in their order, makes
the gists above them, and publishes HEAD up to the first piece that is not there yet. So whoever
dies or lags, the tree is what was published last, and whole.

Nothing but the tree's folder passes between the processes, and at the start two numbers.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import tensorstore as ts
from jax.experimental import multihost_utils

from mctx.tree import arrays as stored
from mctx.tree.arrays import Arrays
from mctx.tree.editing import Draft, ascend
from mctx.tree.head import TreeError, epoch_folder, explained
from mctx.tree.ingest import BATCH, Ingest, Reader
from mctx.tree.store import Tree

WINDOWS = 64  # of one piece
PAUSE = 0.05  # seconds between two looks for a part record

Agree = Callable[[np.ndarray], np.ndarray]  # what process 0 says, to all
Progress = Callable[[int, int], None]  # tokens of this call that are published, and in all


class Piece(NamedTuple):
    """Piece `number` of the job: tokens [start, stop) of what is added, whole blocks."""

    number: int
    start: int
    stop: int


def append_together(
    uri: str,
    reader: Reader,
    tokens: np.ndarray,
    fingerprint: str,
    patience: float = 120.0,
    windows: int | None = None,
    progress: Progress = lambda done, total: None,
    agree: Agree = multihost_utils.broadcast_one_to_all,
) -> int:
    """Adds tokens to an existing tree; every process of a `jax.distributed` job calls it alike.

    Tokens short of a block at the end are left out, as always.

    Args:
      tokens: [n], the same in every process.
      patience: seconds that the lead waits for a piece before it gives up.
      windows: of one piece; WINDOWS if not given.

    Returns:
      Tokens added; in other processes than the lead, those they were to read.

    Raises:
      TreeError: a process did not deliver; the tree holds what was published and another call with
        what is missing goes on from there. Or another writer took the tree over.
    """
    process, processes = jax.process_index(), jax.process_count()
    size = (windows or WINDOWS) * reader.model.window
    if process == 0:
        lead = _Lead(uri, reader, tokens, fingerprint, processes, size)
        agree(np.array([lead.tree.epoch, lead.first], np.int32))
        with lead.tree:
            return lead.run(patience, progress)
    epoch, first = (int(n) for n in agree(np.zeros(2, np.int32)))
    worker = _Worker(uri, reader, epoch - process)
    done = 0
    for piece in _pieces(len(tokens), first, size, reader.model.gist.block):
        if piece.number % processes == process:
            worker.write(piece, tokens)
            done += piece.stop - piece.start
    return done


def _pieces(length: int, first: int, size: int, block: int) -> Iterator[Piece]:
    end = length // block * block
    for number, start in enumerate(range(first, end, size)):
        yield Piece(number, start, min(start + size, end))


class _Worker:
    """Reads pieces and writes them to one epoch's arrays."""

    def __init__(self, uri: str, reader: Reader, epoch: int):
        self._kvstore, self._uri = stored.open_kvstore(uri), uri
        self._reader, self._epoch = reader, epoch
        with Tree.open(uri) as tree:
            self._arrays = Arrays(self._kvstore, uri, tree.spec, bulk=True)
        self._row = 0  # in blocks: a gist for each

    def write(self, piece: Piece, tokens: np.ndarray) -> None:
        values = np.asarray(tokens[piece.start : piece.stop], np.int32)
        bits = stored.to_bits(window_gists(self._reader, values))
        block = self._reader.model.gist.block
        waits = [
            self._arrays.write(0, self._epoch, self._row * block, values),
            self._arrays.write(1, self._epoch, self._row, bits),
        ]
        for wait in waits:
            wait()
        part = {"epoch": self._epoch, "row": self._row, "blocks": len(bits)}
        name = _part_name(self._epoch, piece.number)
        with explained(f"{name} of {self._uri} cannot be written"):
            self._kvstore.write(name, _encode(part)).result()
        self._row += len(bits)


class _Lead:
    """Reads its own pieces, adopts those of the others, and publishes."""

    def __init__(self, uri, reader, tokens, fingerprint, processes, size):
        self.tree = Tree.open(uri, "w", fingerprint, epochs=processes, bulk=True)
        self._reader, self._processes = reader, processes
        self._tokens = np.asarray(tokens, np.int32)
        # Pieces begin at a window's border: what is short of it is read alone, before all else.
        window, block = reader.model.window, reader.model.gist.block
        open_length = (self.tree.blocks * block - int(self.tree.borders[-1])) % window
        self.first = min(-open_length % window, len(self._tokens) // block * block)
        for _ in Ingest(reader, self.tree).feed(self._tokens[: self.first], rows=0):
            pass
        self.tree.commit()
        self._pieces = list(_pieces(len(self._tokens), self.first, size, block))

    def run(self, patience: float, progress: Progress) -> int:
        done, adopted = self.first, []
        for piece in self._pieces:
            owner = piece.number % self._processes
            if owner == 0:
                self._append(piece)
            else:
                part = self._wait(piece, owner, patience, done)
                self._adopt(part)
                adopted.append(_part_name(part["epoch"], piece.number))
            done = piece.stop
            last = piece.number == len(self._pieces) - 1
            if owner == self._processes - 1 or last:
                self.tree.commit()
                progress(done, len(self._tokens))
        for name in adopted:
            self.tree.kvstore.write(name, None).result()
        return done

    def _append(self, piece: Piece) -> None:
        values = self._tokens[piece.start : piece.stop]
        gists, first = window_gists(self._reader, values), self.tree.blocks
        draft = Draft(self.tree)
        draft.write_blocks(first, values, gists, first + len(gists))
        ascend(self._reader, draft, [(first, first + len(gists))])
        draft.stage()

    def _adopt(self, part: dict) -> None:
        first, blocks, block = self.tree.blocks, part["blocks"], self._reader.model.gist.block
        self.tree.adopt(0, part["epoch"], part["row"] * block, blocks * block)
        self.tree.adopt(1, part["epoch"], part["row"], blocks)
        draft = Draft(self.tree)
        ascend(self._reader, draft, [(first, first + blocks)])
        draft.stage()

    def _wait(self, piece: Piece, owner: int, patience: float, done: int) -> dict:
        """The part record of a piece. What came before it is published, should it never come."""
        name, since = _part_name(self.tree.epoch - owner, piece.number), time.monotonic()
        while True:
            with explained(f"{name} of {self.tree.uri} cannot be read"):
                found = self.tree.kvstore.read(name).result()
            if found.state == "value":
                return _decode(found, name, self.tree.uri)
            self.tree.commit()
            if time.monotonic() - since > patience:
                raise TreeError(
                    f"Process {owner} did not deliver its piece of {self.tree.uri} within "
                    f"{patience:g} s; {done} of {len(self._tokens)} tokens were added, and "
                    "appending the rest goes on from there."
                )
            time.sleep(PAUSE)


def window_gists(reader: Reader, tokens: np.ndarray) -> np.ndarray:
    """LOD1 gists of whole blocks that begin at a window's border: [n·K_1] -> [n, slots, W].

    The last window may be short: it is padded, which no block before the padding can see.
    """
    size, block = reader.model.window, reader.model.gist.block
    padded = np.pad(tokens, (0, -len(tokens) % size)).reshape(-1, size)
    found = [
        reader.window_gists(padded[at : at + BATCH].reshape(-1))
        for at in range(0, len(padded), BATCH)
    ]
    gists = np.concatenate(found)
    return gists.reshape(-1, *gists.shape[2:])[: len(tokens) // block]


def _part_name(epoch: int, number: int) -> str:
    return f"{epoch_folder(epoch)}part-{number:08d}"


def _encode(part: dict) -> bytes:
    body = json.dumps(part).encode()
    return b"%08x %s" % (zlib.crc32(body), body)


def _decode(found: ts.KvStore.ReadResult, name: str, uri: str) -> dict:
    checksum, _, body = found.value.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        raise TreeError(f"{name} of {uri} is damaged; append again what is missing.")
    return json.loads(body)
