"""Pages of gists in host memory, at most so many bytes of them, least recently used out.

A page is a few neighbouring rows of one array, usually one family of siblings. Nothing here reads
or waits, and nothing loops over rows: what a page holds is found by arithmetic on tables.
"""

from typing import NamedTuple

import numpy as np

from mctx.tree.arrays import from_bits

ABSENT = -1
KEPT_BYTES = 2**20
SPARE = 16  # one page in so many is given up when room is needed: finding them has a price


class _Grown(NamedTuple):
    """Arrays kept as they came, and behind them `store`, of which the first `length` rows count."""

    kept: tuple[np.ndarray, ...]
    store: np.ndarray
    length: int

    def parts(self) -> list[np.ndarray]:
        return [*self.kept, self.store[: self.length]]


class Rows:
    """An array that grows along its first axis in amortised constant time.

    One thread may extend it while others read: what is there is replaced as one.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        self._now = _Grown((), np.empty((0, *shape), dtype), 0)

    def __len__(self) -> int:
        return sum(map(len, self._now.kept)) + self._now.length

    @property
    def values(self) -> np.ndarray:
        """[len, …]; a view where nothing large was kept."""
        now = self._now
        return np.concatenate(now.parts()) if now.kept else now.store[: now.length]

    def parts(self, start: int, stop: int) -> list[np.ndarray]:
        """Rows [start, stop), in pieces as they lie."""
        found, at = [], 0
        for part in self._now.parts():
            found.append(part[max(start - at, 0) : max(stop - at, 0)])
            at += len(part)
        return [part for part in found if len(part)]

    def extend(self, values: np.ndarray, keep: bool = False) -> None:
        """Add rows at the end. keep: nobody will change `values`, so many need no copy."""
        kept, store, length = self._now
        if keep and values.nbytes >= KEPT_BYTES and values.dtype == store.dtype:
            before = (store[:length],) if length else ()
            self._now = _Grown((*kept, *before, values), store[:0], 0)
            return
        end = length + len(values)
        if end > len(store):
            capacity = max(end, 2 * length)
            grown = np.empty((capacity, *store.shape[1:]), store.dtype)
            grown[:length] = store[:length]
            store = grown
        store[length:end] = values
        self._now = _Grown(kept, store, end)


class Bits:
    """Gists held as they are stored: exact."""

    def __init__(self, width: int):
        self.row_bytes = 2 * width
        self._width = width

    def empty(self, rows: int) -> tuple[np.ndarray, ...]:
        return (np.empty((rows, self._width), np.uint16),)

    def encode(self, bits: np.ndarray) -> tuple[np.ndarray, ...]:
        """uint16 [n, width] → what is held, arrays of n rows."""
        return (bits,)

    def decode(self, held: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        """What is held → float32 [len(rows), width]."""
        return from_bits(np.take(held[0], rows, axis=0))


class Eighths:
    """Gists held in 8 bits and a scale each: off by at most 1/254 of the gist's largest value."""

    def __init__(self, width: int):
        self.row_bytes = width + 4
        self._width = width

    def empty(self, rows: int) -> tuple[np.ndarray, ...]:
        return np.empty((rows, self._width), np.int8), np.empty((rows, 1), np.float32)

    def encode(self, bits: np.ndarray) -> tuple[np.ndarray, ...]:
        values = from_bits(bits)
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = np.rint(values / scale)
        return np.where(scale > 0, steps, 0).astype(np.int8), scale

    def decode(self, held: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        steps, scale = (np.take(part, rows, axis=0) for part in held)
        return np.multiply(steps, scale, dtype=np.float32)


class Pages:
    """A table of pages by (level, epoch, page). Not thread-safe: the mirror holds a lock.

    Attributes:
      size: rows of a page, a power of two.
      capacity: pages that the byte limit allows, at least one.
      row_bytes: of one row as it is held.
    """

    def __init__(self, coding: Bits | Eighths, size: int, limit: int):
        self.size = size
        self.capacity = max(1, limit // (size * coding.row_bytes))
        self.row_bytes = coding.row_bytes
        self._coding = coding
        self._shift = size.bit_length() - 1
        self._held = coding.empty(0)  # [slots·size, …]
        # By slot: rows held of the page, which are its first; when it was last asked for; whose.
        self._filled, self._used = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._owner, self._page = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._live = 0  # slots in use are a prefix, but for what was given up and waits in _free
        self._claimed = 0  # of them, those that wait for `fill`
        self._free = np.zeros(0, np.int64)
        self._tables: dict[tuple[int, int], tuple[int, Rows]] = {}  # number, page → slot
        self._by_number: list[Rows] = []
        self._clock = 0

    def __len__(self) -> int:
        """Pages held."""
        return self._live - len(self._free) - self._claimed

    def find(self, level: int, epoch: int, rows: np.ndarray) -> np.ndarray:
        """Where rows [n] of an array are held: [n] places for `take`, ABSENT where they are not."""
        _, table = self._table(level, epoch, rows.max(initial=-1) >> self._shift)
        slots = table.values[rows >> self._shift]
        offsets = rows & (self.size - 1)
        if not len(self._filled):
            return np.full(len(rows), ABSENT)
        held = (slots != ABSENT) & (self._filled[slots] > offsets)
        self._clock += 1
        self._used[slots[slots != ABSENT]] = self._clock
        return np.where(held, (slots << self._shift) + offsets, ABSENT)

    def take(self, places: np.ndarray) -> np.ndarray:
        """What `find` found → float32 [n, width]."""
        return self._coding.decode(self._held, places)

    def put(self, level: int, epoch: int, pages: np.ndarray, bits: np.ndarray, end: int):
        """Hold pages, of which rows below `end` are known; of many, the last that fit.

        Args:
          pages: [n], distinct. bits: uint16 [n, size, width].

        Returns:
          Rows as they are held, for `decode`: of all pages, whether they fit or not.
        """
        encoded = self._coding.encode(bits.reshape(len(pages) * self.size, -1))
        number, table = self._table(level, epoch, pages.max(initial=-1))
        filled = np.minimum(end - pages * self.size, self.size)
        slots = table.values[pages]
        # What is held of a page may by now be more than was read.
        news = np.flatnonzero((slots == ABSENT) | (self._filled_of(slots) < filled))
        news = news[max(0, len(news) - self.capacity + self._claimed) :]
        pages, slots, filled = pages[news], slots[news], filled[news]
        absent = slots == ABSENT
        slots[absent] = self._room(int(absent.sum()), slots[~absent])
        for held, part in zip(self._held, encoded, strict=True):
            by_page = held.reshape(-1, self.size, held.shape[-1])
            by_page[slots] = part.reshape(-1, self.size, part.shape[-1])[news]
        self._filled[slots], self._owner[slots], self._page[slots] = filled, number, pages
        self._clock += 1
        self._used[slots] = self._clock
        table.values[pages] = slots
        return encoded

    def add(self, level: int, epoch: int, row: int, bits: np.ndarray) -> None:
        """Rows from `row` on that were just stored: where they continue or begin a page."""
        stop = row + len(bits)
        pages = np.arange(row >> self._shift, (stop - 1 >> self._shift) + 1)
        rows = np.zeros((len(pages) * self.size, *bits.shape[1:]), bits.dtype)
        first = int(pages[0]) * self.size
        rows[row - first : stop - first] = bits
        if row > first:
            before = self.find(level, epoch, np.array([row - 1]))
            if before[0] != ABSENT:
                self._continue(int(before[0]) + 1, bits[: first + self.size - row])
            pages, rows = pages[1:], rows[self.size :]
        if len(pages):
            self.put(level, epoch, pages, rows.reshape(len(pages), self.size, -1), stop)

    def _filled_of(self, slots: np.ndarray) -> np.ndarray:
        return self._filled[slots] if len(self._filled) else np.zeros(len(slots), np.int32)

    def _continue(self, place: int, bits: np.ndarray) -> None:
        """Adds rows to the end of a held page."""
        encoded = self._coding.encode(bits.reshape(len(bits), -1))
        for held, part in zip(self._held, encoded, strict=True):
            held[place : place + len(bits)] = part
        slot = place >> self._shift
        self._filled[slot] = max(self._filled[slot], (place & (self.size - 1)) + len(bits))

    def decode(self, encoded: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        """Rows of what `put` returned → float32 [n, width]."""
        return self._coding.decode(encoded, rows)

    def claim(self, pages: int) -> slice | None:
        """Room for so many pages side by side, to read into; None where there is none.

        Only memory that was reserved and never used is claimed, and only of pages held exactly.
        """
        slots = slice(self._live, self._live + pages)
        exact, most = len(self._held) == 1, self.capacity // 2
        if not exact or slots.stop > len(self._filled) or self._claimed + pages > most:
            return None
        self._live, self._claimed = slots.stop, self._claimed + pages
        self._used[slots] = np.iinfo(np.int64).max
        return slots

    def claimed(self, slots: slice) -> np.ndarray:
        """The memory of claimed slots: uint16 [n·size, width]."""
        return self._held[0][slots.start * self.size : slots.stop * self.size]

    def fill(
        self, level: int, epoch: int, pages: np.ndarray, slots: slice, memory: np.ndarray, end: int
    ) -> None:
        """Hold pages that were read into `memory`, the claimed slots as they were then.

        Pages that came another way meanwhile keep their place.
        """
        now = self.claimed(slots)
        if now.ctypes.data != memory.ctypes.data:  # all was moved to larger memory
            now[:] = memory
        self._claimed -= len(pages)
        number, table = self._table(level, epoch, int(pages[-1]))
        places = np.arange(slots.start, slots.stop)
        new = table.values[pages] == ABSENT
        self._free = np.append(self._free, places[~new])
        pages, places = pages[new], places[new]
        self._filled[places] = np.minimum(end - pages * self.size, self.size)
        self._owner[places], self._page[places] = number, pages
        self._clock += 1
        self._used[slots] = self._clock
        table.values[pages] = places

    def abandon(self, slots: slice) -> None:
        """Gives claimed slots back."""
        self._claimed -= slots.stop - slots.start
        self._used[slots] = 0
        self._free = np.append(self._free, np.arange(slots.start, slots.stop))

    def reserve(self, pages: int) -> None:
        """Take memory for so many pages in all at once, if the limit allows."""
        wanted = min(pages, self.capacity)
        if wanted > len(self._filled):
            self._grow(wanted)

    def _table(self, level: int, epoch: int, last: int) -> tuple[int, Rows]:
        """The number of an array and its table of slots, up to page `last`."""
        if (level, epoch) not in self._tables:
            table = Rows((), np.dtype(np.int64))
            self._tables[level, epoch] = len(self._by_number), table
            self._by_number.append(table)
        number, table = self._tables[level, epoch]
        table.extend(np.full(max(0, last + 1 - len(table)), ABSENT))
        return number, table

    def _room(self, count: int, wanted: np.ndarray) -> np.ndarray:
        """`count` free slots, none of them `wanted`."""
        if count > len(self._free):
            fresh = min(count - len(self._free), self.capacity - self._live)
            if self._live + fresh > len(self._filled):
                self._grow(min(self.capacity, max(2 * self._live, self._live + fresh)))
            self._free = np.append(self._free, np.arange(self._live, self._live + fresh))
            self._live += fresh
        if count > len(self._free):
            self._give_up(count - len(self._free), wanted)
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _give_up(self, count: int, wanted: np.ndarray) -> None:
        """Frees at least `count` slots: those that were not asked for longest."""
        used = self._used[: self._live].copy()
        used[wanted] = used[self._free] = np.iinfo(np.int64).max
        most = self._live - len(wanted) - len(self._free) - self._claimed
        count = min(max(count, self.capacity // SPARE), most)
        slots = np.argpartition(used, count - 1)[:count]
        for number in np.unique(self._owner[slots]):
            of_it = slots[self._owner[slots] == number]
            self._by_number[number].values[self._page[of_it]] = ABSENT
        self._filled[slots] = 0
        self._free = np.append(self._free, slots)

    def _grow(self, slots: int) -> None:
        grown = self._coding.empty(slots * self.size)
        for new, old in zip(grown, self._held, strict=True):
            new[: len(old)] = old
        self._held = grown
        more = slots - len(self._filled)
        for name in ("_filled", "_used", "_owner", "_page"):
            values = getattr(self, name)
            setattr(self, name, np.concatenate([values, np.zeros(more, values.dtype)]))
