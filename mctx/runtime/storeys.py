"""Where rows of blocks are held, each storey within its own bytes, least recently used out."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

Pair = tuple[Any, Any]  # keys and values of one block, [L, K_1, K, H] each


class Memory:
    """Arrays in memory: NumPy's in the host's, JAX's in the device's."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[Any, Pair] = OrderedDict()

    def __contains__(self, address) -> bool:
        return address in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """Of all pairs that are held."""
        return self._bytes

    def items(self) -> Iterator[tuple[Any, Pair]]:
        """What is held, the least recently used first."""
        return iter(self._held.items())

    def get(self, address) -> Pair | None:
        if address in self._held:
            self._held.move_to_end(address)
        return self._held.get(address)

    def put(self, address, pair: Pair) -> None:
        """Holds a pair; what the storey has no room for is given up by `trim`, not here."""
        if address not in self._held:
            self._bytes += pair[0].nbytes + pair[1].nbytes
            self._held[address] = pair
        self._held.move_to_end(address)

    def trim(self) -> list[tuple[Any, Pair]]:
        """Gives up what exceeds the limit, and returns it."""
        given_up = []
        while self._bytes > self._limit:
            address, pair = self._held.popitem(last=False)
            self._bytes -= pair[0].nbytes + pair[1].nbytes
            given_up.append((address, pair))
        return given_up

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0


class Disk:
    """Rows in a file that ends with the process: room for more than the host's memory has.

    Of slots of one size, written once and read in one piece. Nothing in it outlives the process,
    so nothing can be stale or torn; what is lost is read from its window again.
    """

    def __init__(self, limit: int, folder: str | None = None):
        self._limit, self._folder = limit, folder
        self._slots: OrderedDict[Any, int] = OrderedDict()
        self._memory: np.ndarray | None = None  # [slots, bytes of a pair]
        self._like: tuple = ()  # shape and type of an array

    def __contains__(self, address) -> bool:
        return address in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, address) -> Pair | None:
        if address not in self._slots:
            return None
        self._slots.move_to_end(address)
        shape, dtype = self._like
        pair = np.array(self._memory[self._slots[address]]).view(dtype)
        return tuple(pair.reshape(2, *shape))

    def put(self, address, pair: Pair) -> None:
        size = pair[0].nbytes + pair[1].nbytes
        if address in self._slots or size > self._limit:
            return
        if self._memory is None:
            self._memory = self._file(self._limit // size, size)
            self._like = pair[0].shape, pair[0].dtype
        slot = len(self._slots)
        if slot == len(self._memory):
            _, slot = self._slots.popitem(last=False)
        both = np.stack([np.asarray(x) for x in pair])
        self._memory[slot] = np.frombuffer(both.tobytes(), np.uint8)
        self._slots[address] = slot

    def clear(self) -> None:
        """Forgets everything; the file's room is used again."""
        self._slots.clear()

    def _file(self, slots, size):
        """A file without a name, as long as its last slot that was written."""
        file = tempfile.TemporaryFile(dir=self._folder, prefix="mctx-rows-")
        file.truncate(slots * size)
        return np.memmap(file, np.uint8, "r+", shape=(slots, size))
