"""Documents: named stretches of a history that can be replaced, and the blocks that are dead.

A history is text with documents in it. A document owns a *span*, whole blocks, of which it may
fill less: what is left of its last block is padding, and blocks behind that are dead. A span whose
document was deleted or moved away is dead as a whole, and keeps its place for ever, because
positions never shift. Dead blocks are never shown, cost nothing, and have no gists.

Ingest windows never cross a border: the grid of windows starts anew at every span's first block,
and at the first block of the text behind a span.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Tokens [start, stop), whole blocks, of which the first `length` are the document's.

    name: "" when the span is dead; version: 1 when added, one more with every replacement.
    """

    name: str
    version: int
    start: int
    stop: int
    length: int


class Documents:
    """The spans of a history, in order of start; immutable."""

    def __init__(self, spans: Iterable[Span] = ()):
        self.spans = tuple(s if isinstance(s, Span) else Span(*s) for s in spans)

    def __eq__(self, other) -> bool:
        return isinstance(other, Documents) and self.spans == other.spans

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self):
        """Names, in the order in which the documents stand in the history."""
        return iter(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Span:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Span]:
        return {span.name: span for span in self.spans if span.name}

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """Start, stop and length of every span: int64 [n, 3]."""
        return np.array([span[2:] for span in self.spans], np.int64).reshape(-1, 3)

    @functools.cached_property
    def borders(self) -> np.ndarray:
        """Tokens at which the grid of ingest windows starts anew, rising, 0 first: int64 [m]."""
        edges = {edge for span in self.spans for edge in (span.start, span.stop)}
        return np.array(sorted({0} | edges), np.int64)

    def dead(self, block: int) -> np.ndarray:
        """Runs of dead blocks [start, stop) of `block` tokens, rising and apart: int64 [r, 2]."""
        start, stop, length = self._places.T
        return joined_runs(np.stack([start - (-length // block) * block, stop], 1) // block)

    def with_span(self, span: Span) -> "Documents":
        """With one span more, or another state of a span that starts there already."""
        others = (one for one in self.spans if one.start != span.start)
        return Documents(sorted((*others, span), key=lambda one: one.start))

    def without(self, name: str) -> "Documents":
        """With the span of `name` dead."""
        return self.with_span(self[name]._replace(name="", version=0, length=0))


def is_name(name: object) -> bool:
    """Whether a document may be called so: by text, not empty, that UTF-8 can spell."""
    return isinstance(name, str) and name.encode(errors="ignore").decode() == name != ""


def joined_runs(runs: np.ndarray) -> np.ndarray:
    """Rising runs [start, stop) without empty ones, neighbours as one: int64 [r, 2]."""
    runs = runs[runs[:, 0] < runs[:, 1]]
    apart = runs[1:, 0] > runs[:-1, 1]
    first, last = np.append(True, apart), np.append(apart, True)
    return np.stack([runs[first[: len(runs)], 0], runs[last[: len(runs)], 1]], axis=1)


def dead_before(runs: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """How many of the first `blocks` [...] blocks are dead."""
    if not len(runs):
        return np.zeros_like(blocks)
    start, stop = runs.T
    lengths = stop - start
    run = np.searchsorted(start, blocks, side="right") - 1
    inside = np.minimum(blocks - start[run], lengths[run])
    return np.where(run < 0, 0, (np.cumsum(lengths) - lengths)[run] + inside)


def live_within(runs: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Blocks in [start, stop) that are not dead; any shape."""
    return stop - start - (dead_before(runs, stop) - dead_before(runs, start))


def last_live(runs: np.ndarray, stop: int, count: int) -> np.ndarray:
    """The last `count` live blocks before block `stop`, fewer if there are fewer: rising."""
    found, missing = [], count
    for start, end in [*runs[runs[:, 0] < stop][::-1].tolist(), (0, 0)]:
        low = max(end, stop - missing)
        if low < stop:
            found.append(np.arange(low, stop))
            missing -= stop - low
        stop = min(stop, start)
        if not missing:
            break
    return np.concatenate([*found[::-1], np.zeros(0, np.int64)]).astype(np.int64)


def windows_of(
    borders: np.ndarray, positions: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ingest windows, tokens [start, stop), in which tokens at `positions` [n] lie.

    A window is cut short by the next border, and never by the end of the history.
    """
    place = np.searchsorted(borders, positions, side="right") - 1
    origin = borders[place]
    ends = np.append(borders[1:], np.iinfo(np.int64).max)[place]
    start = origin + (positions - origin) // window * window
    return start, np.minimum(start + window, ends)
