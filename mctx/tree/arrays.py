"""The arrays of a tree: where they are stored, in what shape, and reading them by address.

    epoch-00000003/tokens    int32   [rows]
    epoch-00000003/lod1      uint16  [rows, slots, gist_width]     … /lod2, one per level

Each epoch, that is each writer, has its own arrays, so no writer can touch another's rows, and a
row is addressed by (level, epoch, row). All are zarr3 with a crc32c on every chunk and every shard
index: a flipped bit is an error.

Gists are bfloat16, stored as its 16 bits in uint16, because `zarr` for Python cannot open
bfloat16. (float16 would keep three bits more but overflows at 65,504, and the models compute in
bfloat16 anyway.) In numpy: `array[i].view(ml_dtypes.bfloat16)`.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ml_dtypes
import numpy as np
import tensorstore as ts

from mctx.tree.extents import Extent
from mctx.tree.head import TreeError, TreeSpec, epoch_folder, explained

# Arrays are sized once and for all: a resize and the write after it can be seen half done.
ROWS = 2**40

# A shard is a file and is rewritten whole when rows are added to it; a chunk is what a read
# fetches. A live session commits one block at a time, so the shard bounds what each commit
# writes, whatever the history's length. Who writes much at once fills whole shards, and every
# file that is synced costs a few milliseconds, so then fewer and larger ones are faster.
SHARD_BYTES = 2**20
CHUNK_BYTES = 2**15
# Levels above the first are small, and would rewrite a large shard with every commit.
# Reading a chunk has a price beside that of its bytes, so there the chunks are larger, too.
BULK_SHARD_BYTES, BULK_CHUNK_BYTES, BULK_LEVEL = 2**23, 2**18, 1

# glibc's malloc keeps twice as much freed memory as the largest block that it mapped and that was
# freed again, at most. Else TensorStore's buffers go back to the system with every read and write,
# and come again as new pages.
KEPT_BLOCK = 2**24

FEW_RUNS = 8  # of neighbouring pages, that are read as so many ranges

# One context for the process: `memory://` trees live in it, file writes are synced to disk, and
# so many files are read or synced at once as keep a disk busy.
_CONTEXT = ts.Context({"file_io_sync": True, "file_io_concurrency": {"limit": 32}})
# The same, with files read past the system's cache where the file system allows it. What goes to
# the mirror need not be held twice, and filling that cache is a quarter of the processor time.
_PAST_CACHE = ts.Context({"file_io_mode": {"mode": "direct"}}, _CONTEXT)


def open_kvstore(uri: str | os.PathLike) -> ts.KvStore:
    """The folder of a tree: a local path, `file://`, `memory://name`, `gs://` or `s3://`."""
    uri = os.fspath(uri)
    if not uri:
        raise TreeError("a tree needs a place: give a path, or gs:// or s3://.")
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        path = unquote(parts.path) if parts.scheme else uri
        spec = {"driver": "file", "path": f"{Path(path).expanduser().absolute()}/"}
    else:
        spec = f"{uri.rstrip('/')}/"
    with explained(f"{uri} is not a place where a tree can be; give a path or gs:// or s3://"):
        return ts.KvStore.open(spec, context=_CONTEXT).result()


def to_bits(gists: np.ndarray) -> np.ndarray:
    """float32 → the stored uint16, rounded to the nearest bfloat16; always a copy."""
    return np.asarray(gists).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The stored uint16 → float32, exactly."""
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def row_shape(spec: TreeSpec, level: int) -> tuple[int, ...]:
    """Shape of one row: a token, or a gist."""
    return (spec.slots[level - 1], spec.gist_width) if level else ()


def row_dtype(level: int) -> np.dtype:
    """Stored type: tokens, or the bits of gists."""
    return np.dtype(np.uint16 if level else np.int32)


def row_bytes(spec: TreeSpec, level: int) -> int:
    """Stored size of one row; nothing is compressed."""
    return int(np.prod(row_shape(spec, level), dtype=np.int64)) * row_dtype(level).itemsize


def array_folder(level: int, epoch: int) -> str:
    """Where one epoch's array of a level lies inside the tree's folder."""
    return f"{epoch_folder(epoch)}{f'lod{level}' if level else 'tokens'}/"


class Arrays:
    """Every epoch's arrays of one tree, opened when first needed.

    bulk: whether the arrays that are made here are for writing much at once.
    """

    def __init__(self, kvstore: ts.KvStore, uri: str, spec: TreeSpec, bulk: bool = False):
        self.uri = uri
        self.spec = spec
        self._kvstore = kvstore
        self.bulk = bulk
        self._open: dict[tuple[int, int], ts.TensorStore] = {}
        self._open_past_cache: dict[tuple[int, int], ts.TensorStore] = {}
        np.empty(KEPT_BLOCK, np.uint8)  # freed at once, and never touched: it costs nothing

    def write(self, level: int, epoch: int, row: int, *parts: np.ndarray) -> Callable[[], None]:
        """Start writing rows, one part behind the other, which must not change any more.

        They are stored for good once the returned function returns.
        """
        futures = []
        for values in parts:
            rows = self._array(level, epoch, create=True)[row : row + len(values)]
            # Copied by this thread, unless told that it need not be: whole chunks, then.
            how = {"can_reference_source_data_indefinitely": self.bulk}
            futures.append(rows.write(values, **how))
            row += len(values)

        def wait() -> None:
            with explained(f"Rows of level {level} of {self.uri} cannot be written"):
                for future in futures:
                    future.result()

        return wait

    def shard_rows(self, level: int) -> int:
        """Rows of a file of the arrays that are made here."""
        return _sizes(self.spec, level, self.bulk)[0]

    def stored_sizes(self, level: int, epoch: int) -> tuple[int, int]:
        """Rows of a file and of a chunk of an epoch's array, as its writer chose them."""
        layout = self._array(level, epoch).chunk_layout
        return layout.write_chunk.shape[0], layout.read_chunk.shape[0]

    def read_parts(self, level: int, parts: Sequence[Extent]) -> list[np.ndarray]:
        """The rows of every part, all read at once; their logical rows are named in an error."""
        reads = []
        for _, epoch, row, length in parts:
            array = self._array(level, epoch)
            reads.append(array[row : row + length].read())
        found = []
        for part, read in zip(parts, reads, strict=True):
            with self.damage(level, part.start, part.stop - 1):
                found.append(read.result())
        return found

    def read_rows(
        self, level: int, epochs: np.ndarray, rows: np.ndarray, logical: np.ndarray
    ) -> np.ndarray:
        """Rows at (epochs [n], rows [n]) → [n, …], one read per epoch, all at once.

        logical: [n], what the rows are in the history, for the sentence of an error.
        """
        reads = []
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            reads.append((here, self._array(level, int(epoch))[rows[here]].read()))
        values = np.empty((len(rows), *row_shape(self.spec, level)), row_dtype(level))
        for here, read in reads:
            with self.damage(level, logical[here].min(), logical[here].max()):
                values[here] = read.result()
        return values

    def read_pages(
        self, level: int, epoch: int, pages: np.ndarray, size: int, end: int
    ) -> Callable[[], np.ndarray]:
        """Start reading pages: page p is rows [p·size, (p + 1)·size) of one array.

        Args:
          pages: [n], rising.
          end: rows from this one on are not read; what stands for them is undefined.

        Returns:
          A function that waits for them: [n, size, …].
        """
        array = self._array(level, epoch)
        runs = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
        if len(runs) > FEW_RUNS:
            rows = np.minimum(pages[:, None] * size + np.arange(size), end - 1)
            return array[rows].read().result
        reads = []
        for run in runs:
            stop = min((int(run[-1]) + 1) * size, end)
            reads.append(array[int(run[0]) * size : stop].read())

        def wait() -> np.ndarray:
            if len(reads) == 1 and len(pages) * size == reads[0].result().shape[0]:
                return reads[0].result().reshape(len(pages), size, *array.shape[1:])
            values = np.zeros((len(pages), size, *array.shape[1:]), row_dtype(level))
            flat, at = values.reshape(-1, *array.shape[1:]), 0
            for run, read in zip(runs, reads, strict=True):
                found = read.result()
                flat[at : at + len(found)] = found
                at += len(run) * size
            return values

        return wait

    def read_into(
        self, memory: np.ndarray, level: int, epoch: int, row: int
    ) -> Callable[[], None]:
        """Start reading neighbouring rows into memory [n, slots·gist_width]; returns a wait.

        Of local files past the system's cache, unless the last chunk of a file is among them:
        TensorStore reads whole blocks of the disk then, and a file does not end at the border of
        one.
        """
        rows = memory.reshape(len(memory), *row_shape(self.spec, level))
        target = ts.array(rows, context=_CONTEXT)
        source = self._array_past_cache if self._is_local else self._array
        return target.write(source(level, epoch)[row : row + len(rows)]).result

    def damage(self, level: int, first: int, last: int):
        """Turns an error of reading into a sentence that names logical rows."""
        return explained(
            f"Level {level}, rows {first} to {last} of {self.uri} cannot be read; "
            "if a file is damaged, restore it from a copy"
        )

    def create(self, epoch: int, levels: Sequence[int]) -> None:
        """Makes the arrays of levels that an epoch's writer begins to write, all at once."""
        wanted = [level for level in levels if (level, epoch) not in self._open]
        opening = [self._begin_to_open(level, epoch, create=True) for level in wanted]
        for level, future in zip(wanted, opening, strict=True):
            self._opened(level, epoch, future)
        if wanted:
            self._sync_folders(epoch)

    def _array(self, level: int, epoch: int, create: bool = False) -> ts.TensorStore:
        """An epoch's array; only the epoch's writer creates it, with its first row."""
        if (level, epoch) not in self._open:
            if create:
                self.create(epoch, [level])
            else:
                self._opened(level, epoch, self._begin_to_open(level, epoch, create=False))
        return self._open[level, epoch]

    def _array_past_cache(self, level: int, epoch: int) -> ts.TensorStore:
        if (level, epoch) not in self._open_past_cache:
            spec = self._array(level, epoch).spec()
            with explained(f"{array_folder(level, epoch)} of {self.uri} cannot be opened"):
                opened = ts.open(spec, open=True, context=_PAST_CACHE).result()
            self._open_past_cache[level, epoch] = opened
        return self._open_past_cache[level, epoch]

    def _begin_to_open(self, level: int, epoch: int, create: bool) -> ts.Future:
        spec = {
            "driver": "zarr3",
            "kvstore": (self._kvstore / array_folder(level, epoch)).spec().to_json(),
            # Without these two a lost file reads as zeros.
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        if create:
            spec["metadata"] = _metadata(self.spec, level, self.bulk)
        return ts.open(spec, open=True, create=create, context=_CONTEXT)

    def _opened(self, level: int, epoch: int, opening: ts.Future) -> None:
        folder = array_folder(level, epoch)
        with explained(f"{folder} of {self.uri} cannot be opened"):
            array = opening.result()
        self._check(array, level, folder)
        self._open[level, epoch] = array

    @property
    def _is_local(self) -> bool:
        """Whether the tree lies in files of this machine."""
        return self._kvstore.spec().to_json()["driver"] == "file"

    def _sync_folders(self, epoch: int) -> None:
        """Makes new folders of files last, too: TensorStore syncs the folder of each file only."""
        if not self._is_local:
            return
        store = self._kvstore.spec().to_json()
        tree = Path(store["path"])
        with explained(f"{epoch_folder(epoch)} of {self.uri} cannot be written"):
            sync_folder(tree / epoch_folder(epoch))
            with contextlib.suppress(PermissionError):  # it may be another's, and not to be read
                sync_folder(tree.parent)

    def _check(self, array: ts.TensorStore, level: int, folder: str) -> None:
        """The size of shards is the writer's choice; all else follows from the tree's spec."""
        shape = (ROWS, *row_shape(self.spec, level))
        if array.shape != shape or array.dtype.numpy_dtype != row_dtype(level):
            raise TreeError(
                f"{folder} of {self.uri} is an array {array.dtype.name} {list(array.shape)} and "
                f"not {row_dtype(level).name} {list(shape)}; restore it from a copy."
            )


def _sizes(spec: TreeSpec, level: int, bulk: bool) -> tuple[int, int]:
    """Rows of a shard and of a chunk in the arrays that are made here."""
    sizes = SHARD_BYTES, CHUNK_BYTES
    if bulk and level <= BULK_LEVEL:
        sizes = BULK_SHARD_BYTES, BULK_CHUNK_BYTES
    shard, chunk = (rows_in(size, spec, level) for size in sizes)
    return shard, chunk


def _metadata(spec: TreeSpec, level: int, bulk: bool) -> dict:
    shape = row_shape(spec, level)
    shard, chunk = _sizes(spec, level, bulk)
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little_endian, {"name": "crc32c"}]
    sharding = {"chunk_shape": [chunk, *shape], "codecs": checked, "index_codecs": checked}
    return {
        "shape": [ROWS, *shape],
        "data_type": row_dtype(level).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}},
        # Shards are files in one folder: a folder of its own for each takes as long as the file.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }


def rows_in(size: int, spec: TreeSpec, level: int) -> int:
    """The largest power of two of rows within `size` bytes, so that chunks divide shards."""
    return power_within(size, row_bytes(spec, level))


def power_within(size: int, one: int) -> int:
    """The largest power of two of things of `one` bytes within `size`, at least 1."""
    return 1 << max(0, (size // one).bit_length() - 1)


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def has_others(kvstore: ts.KvStore) -> bool:
    """Whether the folder is a local one with files in it, of which none is a tree's."""
    spec = kvstore.spec().to_json()
    folder = Path(spec["path"]) if spec["driver"] == "file" else None
    return bool(folder and folder.is_dir() and any(
        not one.name.startswith("HEAD") for one in folder.iterdir()
    ))  # fmt: skip


def has_remains(kvstore: ts.KvStore, uri: str) -> bool:
    """Whether arrays of a tree that lost its HEAD are here: writing among them would be harm."""
    with explained(f"{uri} cannot be listed; a tree needs a folder of its own"):
        return bool(kvstore.list(ts.KvStore.KeyRange("epoch-", "epoch.")).result())
