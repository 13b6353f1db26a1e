"""Where rows of blocks are held, each storey within its own bytes, least recently used out."""

from __future__ import annotations

import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

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
    so nothing can be stale or torn; what is lost is read from its window again. Where the disk is
    full, no more slots are used than it has given. (A file that is mapped would end the process.)
    """

    def __init__(self, limit: int, folder: str | None = None):
        self._limit, self._folder = limit, folder
        self._slots: OrderedDict[Any, int] = OrderedDict()
        self._file: IO[bytes] | None = None
        self._most = 0  # slots
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
        size = 2 * math.prod(shape) * np.dtype(dtype).itemsize
        found = os.pread(self._file.fileno(), size, self._slots[address] * size)
        return tuple(np.frombuffer(found, dtype).reshape(2, *shape))

    def put(self, address, pair: Pair) -> None:
        size = pair[0].nbytes + pair[1].nbytes
        if address in self._slots or size > self._limit:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix="mctx-rows-")
            self._most, self._like = self._limit // size, (pair[0].shape, pair[0].dtype)
        slot = len(self._slots)
        if slot == self._most:
            if not slot:
                return
            _, slot = self._slots.popitem(last=False)
        if self._write(np.stack([np.asarray(x) for x in pair]).tobytes(), slot * size):
            self._slots[address] = slot
        else:
            self._most = len(self._slots)

    def clear(self) -> None:
        """Forgets everything; the file's room is used again."""
        self._slots.clear()

    def _write(self, data, at):
        """Whether there was room for it."""
        try:
            return os.pwrite(self._file.fileno(), data, at) == len(data)
        except OSError:
            return False
