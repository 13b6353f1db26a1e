"""The host mirror: gists in memory, read from the arrays when they are asked for, or before.

A gist is half a µs from here and 35 µs from disk. What lies at an address (level, epoch, row)
never changes, so a copy never goes stale: a replaced document has other addresses. Where the
mirror is smaller than the tree it keeps the pages that were asked for last.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mctx.tree.arrays import Arrays, power_within, row_bytes, row_dtype, row_shape
from mctx.tree.extents import DEAD, Extents
from mctx.tree.head import Head
from mctx.tree.pages import ABSENT, Bits, Eighths, Pages

PAGE_BYTES = 2**12  # of rows as stored: 32 of width 64, a family of siblings; of larger, one
# Read at once by the background. Fewer bytes under way leave the disk idle, and so do as many in
# larger pieces; smaller pieces cost more processor time.
LOAD_BYTES = 2**22
LOADS_AHEAD = 32
PREFETCHES = 8  # under way or waiting; a tree that cannot keep up is not asked for more
ADD_BYTES = 2**20
WORTH_LOADING = 2**20  # bytes; a tree with less is here after a few reads anyway

End = Callable[[int], int]  # epoch → the row from which on its array must not be read


class MirrorConfig(NamedTuple):
    """Attributes:
    limit: bytes of gists held in memory.
    int8: hold 8 bits and a scale per gist (or part of one) instead of bfloat16: half the memory,
      and every value off by at most 1/254 of its gist's largest.
    load: read in the background, from the coarsest level on, all levels that fit.
    """

    limit: int = 2**30
    int8: bool = False
    load: bool = True


class _Piece(NamedTuple):
    """Neighbouring pages of one array, not from row `end` on."""

    level: int
    epoch: int
    pages: np.ndarray
    end: int


class Mirror:
    """Gists by (level, epoch, row); safe to share between threads."""

    def __init__(self, arrays: Arrays, config: MirrorConfig | None = None):
        self._arrays, self.config = arrays, config or MirrorConfig()
        spec = arrays.spec
        # Gists of all levels are held in pieces of one width, and whole gists in a page.
        self._width = min(spec.slots) * spec.gist_width
        piece_bytes = self._width * row_dtype(1).itemsize
        self._size = max(power_within(PAGE_BYTES, piece_bytes), *spec.pieces)
        coding = (Eighths if self.config.int8 else Bits)(self._width)
        self._pages = Pages(coding, self._size, self.config.limit)
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._ahead: list[Future] = []
        self.loaded: Future | None = None  # set by `load`; its result: bytes held in the end

    @property
    def nbytes(self) -> int:
        """Of the pages that are held."""
        return len(self._pages) * self._size * self._pages.row_bytes

    def _pieces(self, level: int) -> int:
        """Of a gist."""
        return self._arrays.spec.pieces[level - 1]

    def _rows(self, level: int) -> int:
        """Gists in a page."""
        return self._size // self._pieces(level)

    def gather(
        self, level: int, epochs: np.ndarray, rows: np.ndarray, logical: np.ndarray, end: End
    ) -> np.ndarray:
        """Gists at (epochs [n], rows [n]) of a level → float32 [n, slots, gist_width].

        All that miss are read at once, in whole pages.

        Args:
          logical: [n], what the rows are in the history, for the sentence of an error.
        """
        pieces = self._pieces(level)
        gists = np.empty((len(rows), pieces, self._width), np.float32)
        missing = []
        for epoch, here in _by_epoch(epochs):
            with self._lock:
                places = self._pages.find(level, epoch, _spread(rows[here], pieces).ravel())
                places = places.reshape(-1, pieces)
                absent = np.any(places == ABSENT, axis=1)
                if not absent.any():
                    gists[here] = self._taken(places)
                    continue
                members = np.arange(len(rows))[here]
                gists[members[~absent]] = self._taken(places[~absent])
            missing.append((epoch, members[absent]))
        self._read(level, rows, logical, missing, end, gists)
        return gists.reshape(-1, *row_shape(self._arrays.spec, level))

    def _taken(self, places):
        """Gists whose pieces are held at places [n, pieces]: [n, pieces, width]."""
        return self._pages.take(places.ravel()).reshape(*places.shape, self._width)

    def _read(self, level, rows, logical, missing, end, out):
        """Reads the pages of missing rows of several epochs at once, keeps them, fills `out`."""
        begun, in_page, pieces = [], self._rows(level), self._pieces(level)
        for epoch, members in missing:
            pages, which = np.unique(rows[members] // in_page, return_inverse=True)
            stop = end(epoch)
            wait = self._arrays.read_pages(level, epoch, pages, in_page, stop)
            begun.append((epoch, members, pages, which.ravel(), stop, wait))
        for epoch, members, pages, which, stop, wait in begun:
            with self._arrays.damage(level, logical[members].min(), logical[members].max()):
                bits = wait()
            with self._lock:
                encoded = self._pages.put(level, epoch, pages, bits, stop * pieces)
            places = _spread(which * in_page + rows[members] % in_page, pieces)
            found = self._pages.decode(encoded, places.ravel())
            out[members] = found.reshape(*places.shape, self._width)

    def add(self, level: int, epoch: int, row: int, parts: list[np.ndarray]) -> None:
        """Rows that were just stored and committed come here without being read, if they are few.

        Who writes much at once is not about to read it.
        """
        if sum(part.nbytes for part in parts) <= ADD_BYTES:
            rows = np.concatenate(parts).reshape(-1, self._width)
            with self._lock:
                self._pages.add(level, epoch, row * self._pieces(level), rows)

    def prefetch(
        self, level: int, epochs: np.ndarray, rows: np.ndarray, logical: np.ndarray, end: End
    ) -> Future | None:
        """As `gather`, in the background and for later; nothing where many are under way.

        An error is left for who needs the rows.
        """
        self._ahead = [each for each in self._ahead if not each.done()]
        if len(self._ahead) >= PREFETCHES:
            return None
        future = self._submit(self.gather, level, epochs, rows, logical, end)
        if future:
            self._ahead.append(future)
        return future

    def load(self, head: Head) -> None:
        """Starts reading what HEAD lists, coarse levels first, as many levels as fit."""
        levels = range(1, head.spec.levels + 1)
        if sum(head.count(n) * row_bytes(head.spec, n) for n in levels) >= WORTH_LOADING:
            self.loaded = Future()
            self._submit(_begin_to_load, weakref.ref(self), head, self.loaded)

    def _begin(self, piece: _Piece) -> Callable[[], None]:
        """Starts reading a piece; the returned function waits, and holds it.

        Straight to its place if that can be: else it is copied there, which takes about as long.
        """
        level, epoch, pages, end = piece
        in_page, pieces = self._rows(level), self._pieces(level)
        first, stop = int(pages[0]) * in_page, (int(pages[-1]) + 1) * in_page
        slots = None
        if stop - first == len(pages) * in_page <= end - first:
            with self._lock:
                slots = self._pages.claim(len(pages))
                memory = self._pages.claimed(slots) if slots else None
        if slots is None:
            wait = self._arrays.read_pages(level, epoch, pages, in_page, end)
        else:
            wait = self._arrays.read_into(memory.reshape(stop - first, -1), level, epoch, first)

        def hold() -> None:
            try:
                bits = wait()
            except Exception:
                if slots:
                    with self._lock:
                        self._pages.abandon(slots)
                raise
            with self._lock:
                if slots:
                    self._pages.fill(level, epoch, pages, slots, memory, end * pieces)
                else:
                    self._pages.put(level, epoch, pages, bits, end * pieces)

        return hold

    def close(self) -> None:
        """Ends what is done in the background; reading goes on."""
        if self._worker:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def _submit(self, function: Callable, *arguments) -> Future | None:
        """Runs it in the mirror's one thread; None when there is none any more."""
        if not self._worker:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        try:
            return self._worker.submit(function, *arguments)
        except RuntimeError:  # closed, or the interpreter is ending
            return None


def _begin_to_load(mirror: weakref.ref, head: Head, loaded: Future) -> None:
    self = mirror()
    if self is None:
        return
    wanted, room = [], self._pages.capacity
    for level in range(head.spec.levels, 0, -1):
        pages = [_Piece(level, *each) for each in _pages_of(head.extents[level], self._rows(level))]
        room -= sum(len(each.pages) for each in pages)
        if room < 0:
            break
        wanted += pages
    with self._lock:
        self._pages.reserve(sum(len(each.pages) for each in wanted))
    step = max(1, LOAD_BYTES // (self._size * self._width * row_dtype(1).itemsize))
    stored, in_page = self._arrays.stored_sizes, self._rows
    pieces = (
        piece
        for each in wanted
        for piece in _cut(each, in_page(each.level), step, *stored(each.level, each.epoch))
    )
    self._submit(_load, mirror, pieces, deque(), loaded)


def _cut(piece: _Piece, size: int, step: int, file: int, chunk: int) -> list[_Piece]:
    """In pieces of at most `step` pages, and apart the last chunks of files larger than that.

    Those alone cannot be read past the system's cache.

    Args:
      size: rows of a page. file, chunk: rows of them.
    """
    last = (file > step * size) & ((piece.pages * size + size - 1) % file >= file - chunk)
    cuts = (np.diff(piece.pages // step) != 0) | (last[1:] != last[:-1])
    parts = np.split(piece.pages, 1 + np.flatnonzero(cuts))
    return [piece._replace(pages=pages) for pages in parts]


def _load(mirror: weakref.ref, pieces: Iterator[_Piece], begun: deque, loaded: Future) -> None:
    """Keeps some reads under way, takes in the first, and comes again.

    One piece at a time, so that prefetches come between, and that a mirror which nobody has any
    more, or a program that ends, is not waited for.
    """
    self = mirror()
    if self is None:
        return
    try:
        while len(begun) < LOADS_AHEAD and (piece := next(pieces, None)):
            begun.append(self._begin(piece))
        if not begun:
            loaded.set_result(self.nbytes)
            return
        begun.popleft()()
    except Exception as error:  # who needs these rows will be told
        loaded.set_exception(error)
        return
    if self._submit(_load, mirror, pieces, begun, loaded) is None:
        loaded.cancel()


def _spread(rows: np.ndarray, pieces: int) -> np.ndarray:
    """The pieces of gists: [n] -> [n, pieces]."""
    return rows[:, None] * pieces + np.arange(pieces)


def _by_epoch(epochs: np.ndarray) -> Iterator[tuple[int, np.ndarray | slice]]:
    """Every epoch and where it stands; most often there is one."""
    if not len(epochs):
        return
    if (epochs == epochs[0]).all():
        yield int(epochs[0]), slice(None)
        return
    for epoch in np.unique(epochs).tolist():
        yield epoch, np.flatnonzero(epochs == epoch)


def _pages_of(extents: Extents, size: int) -> list[tuple[int, np.ndarray, int]]:
    """The pages of stored rows: by epoch, their numbers, rising, and where its rows end."""
    found, table = [], extents.table
    for epoch in np.unique(table[:, 1]).tolist():
        if epoch != DEAD:
            _, _, row, length = table[table[:, 1] == epoch].T
            first, last = np.sort(np.stack([row, row + length - 1]) // size, axis=1)
            first[1:] = np.maximum(first[1:], last[:-1] + 1)  # neighbours may share a page
            counts = np.maximum(last - first + 1, 0)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            pages = np.repeat(first, counts) + within
            found.append((epoch, pages, int((row + length).max())))
    return found
