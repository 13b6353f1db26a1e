"""Keys and values of blocks from their ingest windows: on the device, in the host, on disk.

A missing block is remade exactly by reading its one window again (law 8), so the cache may be
dropped at any moment and changes no output.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from mctx.models.base import Rows
from mctx.runtime.storeys import Disk, Memory, Pair
from mctx.runtime.windows import Address, Found, Reading, Windows
from mctx.tree.head import StoreError
from mctx.tree.ingest import Blocks, Reader
from mctx.tree.store import Tree


class BlockCache:
    """Rows of blocks, in the model's own type; a storey holds so many bytes beyond those asked for.

    They are kept under the addresses of the blocks' tokens: a document that is replaced has new
    ones, so nothing here can go stale. A block is looked for on the device, in the host's memory,
    on disk, and then its window is read. Not thread-safe; what it reads in the background is taken
    up by the one thread that uses it.

    Args:
      limit: bytes of host memory; device, disk: bytes of these, 0 for none.
      folder: where the disk's file lies; None: where the system keeps temporary files.
    """

    def __init__(
        self,
        reader: Reader,
        tree: Tree,
        limit: int,
        device: int = 0,
        disk: int = 0,
        folder: str | None = None,
    ):
        self._windows, self._where = Windows(reader, tree), reader.where
        self._dtype = jnp.dtype(reader.model.dtype)
        self._device, self._host = Memory(device), Memory(limit)
        self._disk = Disk(disk, folder)
        self._on_device, self._on_host = device > 0, limit + disk > 0
        c, tokens = reader.model.base, reader.model.gist.block
        one = 2 * c.n_layers * tokens * c.n_kv_heads * c.head_dim * self._dtype.itemsize
        self._limit, self._block_bytes = limit + disk, one
        self._last_states: tuple[tuple, np.ndarray] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._coming: dict[Address, Future] = {}
        self._lander: ThreadPoolExecutor | None = None
        self._landing: list[tuple[Reading, Future]] = []
        # Keys that finders keep of all blocks (`mctx.runtime.finding`), for every session over it.
        self.pieces: dict[tuple, list] = {}
        self.windows_read = 0
        self.reads_failed = 0

    def states(self, blocks: int, want: int) -> np.ndarray:
        """`Windows.states`; the last answer is kept."""
        last = self._windows.last(blocks, want)
        asked = (want, *self._windows.addresses(last))
        if self._last_states is None or self._last_states[0] != asked:
            self._last_states = asked, self._windows.states(blocks, want)
        return self._last_states[1]

    def put(self, blocks: Blocks) -> None:
        addresses = self._windows.addresses(blocks.first + np.arange(len(blocks.k)))
        self._hold(map(Found, addresses, blocks.k, blocks.v))
        self._trim()

    def lacks(self, indices: np.ndarray) -> np.ndarray:
        """Which blocks [n] are held in no storey: [n] bool."""
        storeys = self._device, self._host, self._disk
        storeys += tuple(reading.places for reading, _ in self._landing)
        addresses = self._windows.addresses(indices)
        return np.array([not any(at in one for one in storeys) for at in addresses], bool)

    def fetch(self, indices: np.ndarray) -> dict[int, Pair]:
        """Rows of blocks, by index; windows that miss are read in one batch.

        Each pair is [L, K_1, K, H], on the device where that storey has it.
        """
        addresses = self._windows.addresses(indices)
        self._take_landed()
        found = {at: self._find(at) for at in addresses}
        missing = [i for i, at in zip(indices, addresses, strict=True) if found[at] is None]
        if missing:
            reading = self._windows.begin(np.array(missing, np.int64))
            self.windows_read += reading.count
            for at in found.keys() & reading.places.keys():
                found[at] = found[at] or self._on_its_device(at, reading.pair(at))
            if self._on_host:
                self._land(reading)
        self._trim()
        return {i: found[at] for i, at in zip(np.asarray(indices).tolist(), addresses, strict=True)}

    def get(self, indices: np.ndarray) -> Rows:
        """As `fetch`, in one array for keys and one for values: [n, L, K_1, K, H].

        A block that is asked for twice is there twice.
        """
        found = self.fetch(indices)
        pairs = [found[i] for i in np.asarray(indices).tolist()]
        return Rows(*(np.stack(parts) for parts in zip(*pairs, strict=True)))

    def keys(self, indices: np.ndarray) -> np.ndarray:
        """Keys of blocks [n], on the host: [n, L, K_1, K, H].

        What is held is used; windows that are read for this are not held: who wants keys of a
        whole history would push out the rows that are shown.
        """
        addresses = self._windows.addresses(indices)
        found = {}
        for at in addresses:
            pair = self._device.get(at) or self._host.get(at) or self._disk.get(at)
            if pair is not None:
                found[at] = np.asarray(pair[0])
        missing = [i for i, at in zip(indices, addresses, strict=True) if at not in found]
        if missing:
            read, windows = self._windows.read(np.array(missing, np.int64))
            self.windows_read += windows
            found = {one.address: one.k.astype(self._dtype) for one in read} | found
        return np.stack([found[at] for at in addresses])

    def request(self, indices: np.ndarray) -> None:
        """Asks for blocks whose windows are to be read in the background, all in one batch.

        What has been asked for is not asked for twice.
        """
        addresses = self._windows.addresses(indices)
        new = [i for i, at in zip(indices, addresses, strict=True) if at not in self._coming]
        if not new:
            return
        if not self._worker:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="windows")
        future = self._worker.submit(self._windows.read, np.array(new, np.int64))
        for i, address in zip(indices, addresses, strict=True):
            if i in new:
                self._coming[address] = future

    def take_up(self, wait: bool = False) -> None:
        """Holds what has come in the background since; of what failed, one may ask again."""
        self._take_landed(wait)
        done = {future for future in self._coming.values() if wait or future.done()}
        self._coming = {at: one for at, one in self._coming.items() if one not in done}
        for future in done:
            try:
                read, windows = future.result()
            except StoreError:
                self.reads_failed += 1
                continue
            self.windows_read += windows
            self._hold(read)
        self._trim()

    @property
    def room(self) -> int:
        """How many blocks the host and the disk hold."""
        return self._limit // self._block_bytes

    @property
    def nbytes(self) -> int:
        """Held in the host's memory."""
        return self._host.nbytes

    def drop(self) -> None:
        """Forgets everything."""
        self._landing = []
        for storey in (self._device, self._host, self._disk):
            storey.clear()
        self._last_states = None

    def held(self) -> list[Found]:
        """What is held in memory, the least recently used first."""
        self._take_landed(wait=True)
        self._trim()
        host = dict(self._host.items())
        moved = {at: pair for at, pair in self._device.items() if at not in host}
        return [Found(at, *map(np.asarray, pair)) for at, pair in (moved | host).items()]

    def hold(self, found: Iterable[Found]) -> None:
        """Takes in what `held` told, of this tree or a copy of it."""
        self._hold(found)
        self._trim()

    def _land(self, reading):
        """What was read comes to the host beside what follows; who cannot wait has it at once."""
        if not self._lander:
            self._lander = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._landing.append((reading, self._lander.submit(reading.found)))

    def _take_landed(self, wait=False):
        while self._landing and (wait or self._landing[0][1].done()):
            self._hold(self._landing.pop(0)[1].result())

    def _find(self, address) -> Pair | None:
        pair = self._device.get(address)
        if pair is None:
            pair = self._host.get(address) or self._disk.get(address)
            for reading, _ in self._landing:
                if pair is None and address in reading.places:
                    pair = reading.pair(address)
            if pair is not None:
                pair = self._on_its_device(address, pair)
        return pair

    def _on_its_device(self, address, pair):
        """The pair, held by the device's storey from now on where there is one."""
        if self._on_device:
            pair = jax.device_put(pair, self._where)
            self._device.put(address, pair)
        return pair

    def _hold(self, found):
        """Copies views: they would keep alive all that was read with them."""
        for address, *pair in found:
            if address not in self._host:
                self._host.put(address, tuple(map(self._own, pair)))

    def _own(self, x):
        return x if x.flags.owndata and x.dtype == self._dtype else x.astype(self._dtype)

    def _trim(self):
        self._device.trim()
        for address, pair in self._host.trim():
            self._disk.put(address, pair)
