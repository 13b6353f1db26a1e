"""The arrays of a tree: where they are stored, in what shape, and reading them by extents.

    epoch-00000003/tokens    int32   [rows]
    epoch-00000003/lod1      uint16  [rows, slots, gist_width]     … /lod2, one per level

Each epoch, that is each writer, has its own arrays, so no writer can touch another's rows. All
are zarr3 with a crc32c on every chunk and every shard index: a flipped bit is an error.

Gists are bfloat16, stored as its 16 bits in uint16, because `zarr` for Python cannot open
bfloat16. (float16 would keep three bits more but overflows at 65,504, and the models compute in
bfloat16 anyway.) In numpy: `array[i].view(ml_dtypes.bfloat16)`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ml_dtypes
import numpy as np
import tensorstore as ts

from mctx.tree.head import Extents, TreeSpec, explained, locate, pieces

# Arrays are sized once and for all: a resize and the write after it can be seen half done.
ROWS = 2**40

# A shard is a file and is rewritten whole when rows are added to it; a chunk is what a read
# fetches. A live session commits one block at a time, so the shard bounds what each commit
# writes, whatever the history's length: at 1 MiB about 3 ms an array, fsync included (10 ms at
# 4 MiB), while bulk ingest, which fills whole shards, is within a tenth of larger ones.
SHARD_BYTES = 2**20
CHUNK_BYTES = 2**15

# One context for the process: `memory://` trees live in it, and file writes are synced to disk.
_CONTEXT = ts.Context({"file_io_sync": True})


def open_kvstore(uri: str | os.PathLike) -> ts.KvStore:
    """The folder of a tree: a local path, `file://`, `memory://name`, `gs://` or `s3://`."""
    uri = os.fspath(uri)
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        path = unquote(parts.path) if parts.scheme else uri
        spec = {"driver": "file", "path": f"{Path(path).expanduser().absolute()}/"}
    else:
        spec = f"{uri.rstrip('/')}/"
    with explained(f"{uri} is not a place where a tree can be; give a path or gs:// or s3://"):
        return ts.KvStore.open(spec, context=_CONTEXT).result()


def to_bits(gists: np.ndarray) -> np.ndarray:
    """float32 → the stored uint16, rounded to the nearest bfloat16."""
    return np.asarray(gists, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The stored uint16 → float32, exactly."""
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def row_shape(spec: TreeSpec, level: int) -> tuple[int, ...]:
    """Shape of one row: a token, or a gist."""
    return (spec.slots, spec.gist_width) if level else ()


def row_dtype(level: int) -> np.dtype:
    """Stored type: tokens, or the bits of gists."""
    return np.dtype(np.uint16 if level else np.int32)


def row_bytes(spec: TreeSpec, level: int) -> int:
    """Stored size of one row; nothing is compressed."""
    return int(np.prod(row_shape(spec, level), dtype=np.int64)) * row_dtype(level).itemsize


def array_folder(level: int, epoch: int) -> str:
    """Where one epoch's array of a level lies inside the tree's folder."""
    return f"epoch-{epoch:08d}/{f'lod{level}' if level else 'tokens'}/"


class Arrays:
    """Every epoch's arrays of one tree, opened when first needed."""

    def __init__(self, kvstore: ts.KvStore, uri: str, spec: TreeSpec):
        self._kvstore = kvstore
        self._uri = uri
        self._spec = spec
        self._open: dict[tuple[int, int], ts.TensorStore] = {}

    def write(self, level: int, epoch: int, row: int, values: np.ndarray) -> Callable[[], None]:
        """Start writing rows; they are stored for good once the returned function returns."""
        array = self._array(level, epoch, create=True)
        future = array[row : row + len(values)].write(values)

        def wait() -> None:
            with explained(f"Rows of level {level} of {self._uri} cannot be written"):
                future.result()

        return wait

    def read_range(self, level: int, extents: Extents, start: int, stop: int) -> np.ndarray:
        """Logical rows [start, stop) → [stop - start, …]."""
        parts = pieces(extents, start, stop)
        reads = []
        for _, epoch, row, length in parts:
            array = self._array(level, epoch)
            reads.append(array[row : row + length].read())
        values = np.empty((stop - start, *row_shape(self._spec, level)), row_dtype(level))
        for part, read in zip(parts, reads, strict=True):
            with self._damage(level, part.start, part.stop - 1):
                values[part.start - start : part.stop - start] = read.result()
        return values

    def read_rows(self, level: int, extents: Extents, indices: np.ndarray) -> np.ndarray:
        """Logical rows `indices` [n] → [n, …], one read per epoch that holds some, all at once."""
        epochs, rows = locate(extents, indices)
        reads = []
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            reads.append((here, self._array(level, int(epoch))[rows[here]].read()))
        values = np.empty((len(indices), *row_shape(self._spec, level)), row_dtype(level))
        for here, read in reads:
            with self._damage(level, indices[here].min(), indices[here].max()):
                values[here] = read.result()
        return values

    def _array(self, level: int, epoch: int, create: bool = False) -> ts.TensorStore:
        """An epoch's array; only the epoch's writer creates it, with its first row."""
        if (level, epoch) not in self._open:
            spec = {
                "driver": "zarr3",
                "kvstore": (self._kvstore / array_folder(level, epoch)).spec().to_json(),
                # Without these two a lost file reads as zeros.
                "fill_missing_data_reads": False,
                "store_data_equal_to_fill_value": True,
                "metadata": _metadata(self._spec, level),
            }
            with explained(f"{array_folder(level, epoch)} of {self._uri} cannot be opened"):
                opening = ts.open(spec, open=True, create=create, context=_CONTEXT)
                self._open[level, epoch] = opening.result()
        return self._open[level, epoch]

    def _damage(self, level: int, first: int, last: int):
        return explained(
            f"Level {level}, rows {first} to {last} of {self._uri} cannot be read; "
            "if a file is damaged, restore it from a copy"
        )


def _metadata(spec: TreeSpec, level: int) -> dict:
    shape = row_shape(spec, level)
    chunk = _rows_in(CHUNK_BYTES, spec, level)
    shard = max(chunk, _rows_in(SHARD_BYTES, spec, level))
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little_endian, {"name": "crc32c"}]
    sharding = {"chunk_shape": [chunk, *shape], "codecs": checked, "index_codecs": checked}
    return {
        "shape": [ROWS, *shape],
        "data_type": row_dtype(level).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }


def _rows_in(size: int, spec: TreeSpec, level: int) -> int:
    """The largest power of two of rows within `size` bytes, so that chunks divide shards."""
    return 1 << max(0, (size // row_bytes(spec, level)).bit_length() - 1)


def has_remains(kvstore: ts.KvStore, uri: str) -> bool:
    """Whether arrays of a tree that lost its HEAD are here: writing among them would be harm."""
    with explained(f"{uri} cannot be listed; a tree needs a folder of its own"):
        return bool(kvstore.list(ts.KvStore.KeyRange("epoch-", "epoch.")).result())
