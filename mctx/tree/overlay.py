"""Several trees as one history: read-only ones that are mounted, and a writable one behind them.

Every tree begins at a multiple of the top level's span, so its nodes keep their levels and their
indices but for a shift. What lies between the end of a mounted tree and the next one is dead. The
ancestors that a mounted tree lacks at its ragged end, because they would cover that gap, are made
here from what they cover, as they would be if the gap were a deleted document; they are a function
of the tree and the models, and are kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mctx.tree import checks
from mctx.tree.arrays import row_shape
from mctx.tree.documents import Documents, Span, joined_runs
from mctx.tree.editing import Draft, ascend
from mctx.tree.head import TreeError, TreeSpec
from mctx.tree.store import Tree

ENDS = 2**62  # added to an address's tree number: a gist that was made here


class _Part:
    """One tree of an overlay and where it begins.

    first, stop: blocks; stop is a multiple of the top span for all but the last.
    """

    def __init__(self, number: int, tree: Tree, first: int, reader):
        self.number, self.tree, self.first = number, tree, first
        spec = tree.spec
        self.block = spec.fanouts[0]
        top = spec.span(spec.levels) // self.block
        self.blocks = tree.blocks
        self.stop = first + -(-self.blocks // top) * top
        self.ends: dict[tuple[int, int], np.ndarray] = {}  # gists of the ragged end
        self.edition, self.seen = tree.head.edition, _now(tree)
        if reader is not None:
            self._make_ends(reader)

    def _make_ends(self, reader) -> None:
        """Every gist that the tree would have if its gap were dead rows of its own."""
        draft = Draft(self.tree)
        gap = self.blocks, self.stop - self.first
        if draft.length != self.blocks * self.block:
            raise TreeError(f"{self.tree.uri} ends inside a block, and cannot be mounted.")
        draft.kill(0, self.blocks * self.block, gap[1] * self.block)
        draft.kill(1, *gap)
        span = Span("", 0, gap[0] * self.block, gap[1] * self.block, 0)
        if gap[0] < gap[1]:
            draft.documents = Documents((*draft.documents.spans, span))
        ascend(reader, draft, [gap] if gap[0] < gap[1] else [])
        for change in draft.changes:
            if change.level > 1 and change.values is not None:
                for i, gist in enumerate(change.values):
                    self.ends[change.level, change.start + i] = gist


def _now(tree: Tree) -> tuple:
    """What tells whether a tree is another than it was."""
    return tree.head.edition, tree.head.extents, tree.blocks


class Overlay:
    """One history made of several trees; the last one is `own`, which alone is written.

    Reads like a `Tree`. Every tree must have the same spec: fanouts, gists and models.

    Args:
      mounts: open trees, which are only read. own: the tree behind them.
      reader: `mctx.tree.ingest.Reader`, for the gists of ragged ends.
    """

    def __init__(self, mounts: Sequence[Tree], own: Tree, reader):
        self.own, self.mounts, self._reader = own, tuple(mounts), reader
        for mount in self.mounts:
            if mount.spec != own.spec:
                raise TreeError(
                    f"{mount.uri} was made by models {mount.spec.fingerprint!r} in another shape "
                    f"or by others than {own.uri} ({own.spec.fingerprint!r}); mount trees of one "
                    "checkpoint."
                )
        self._lay_out()

    def _lay_out(self) -> None:
        self._parts, first = [], 0
        for number, mount in enumerate(self.mounts, 1):
            self._parts.append(_Part(number, mount, first, self._reader))
            first = self._parts[-1].stop
        self._parts.append(_Part(0, self.own, first, None))
        checks.room(self.uri, self.spec, first * self.spec.fanouts[0] + self.own.length)

    # -- what there is ---------------------------------------------------------------------

    @property
    def uri(self) -> str:
        return " + ".join(tree.uri for tree in (*self.mounts, self.own))

    @property
    def spec(self) -> TreeSpec:
        return self.own.spec

    @property
    def _shift(self) -> int:
        """Blocks before our own."""
        return self._parts[-1].first

    @property
    def length(self) -> int:
        return self._shift * self.spec.fanouts[0] + self.own.length

    @property
    def blocks(self) -> int:
        return self._shift + self.own.blocks

    def count(self, level: int) -> int:
        own = self.own.count(level)
        return self._shift * self.spec.fanouts[0] // self.spec.span(level) + own

    @property
    def documents(self) -> Documents:
        """All documents, those of mounted trees as `NUMBER:name`, counted from 1."""
        block, spans = self.spec.fanouts[0], []
        for part in self._parts:
            named = f"{part.number}:" if part.number else ""
            shift = part.first * block
            for name, version, start, stop, length in part.tree.documents.spans:
                name = name and named + name
                spans.append(Span(name, version, shift + start, shift + stop, length))
        return Documents(spans)

    @property
    def dead(self) -> np.ndarray:
        """As of a tree, with the gaps between trees."""
        runs = [np.zeros((0, 2), np.int64)]
        for part in self._parts:
            gap = [[part.first + part.blocks, part.stop]] if part.number else np.zeros((0, 2), int)
            runs += [part.first + part.tree.dead, np.asarray(gap, np.int64)]
        return joined_runs(np.concatenate(runs))

    @property
    def borders(self) -> np.ndarray:
        block = self.spec.fanouts[0]
        edges = [part.first * block + part.tree.borders for part in self._parts]
        gaps = [[(part.first + part.blocks) * block] for part in self._parts[:-1]]
        return np.unique(np.concatenate([*edges, *gaps]).astype(np.int64))

    def addresses(self, level: int, indices: np.ndarray) -> np.ndarray:
        """As of a tree; the first column tells the trees apart. Dead ones are (0, 0, 0)."""
        found = np.zeros((len(indices), 3), np.int64)
        for part, here, own in self._split(level, np.asarray(indices, np.int64)):
            held = own < (part.tree.count(level) if level else part.tree.length)
            found[here[held]] = part.tree.addresses(level, own[held]) + (part.number, 0, 0)
            # What is made for a ragged end is made anew when the tree has changed.
            ends = here[~held]
            found[ends] = np.stack(
                np.broadcast_arrays(
                    ENDS + part.number, part.edition * 2**32 + part.blocks, own[~held]
                ),
                axis=1,
            )
        return found

    def stats(self) -> dict:
        """Those of the writable tree, and of those that are mounted."""
        return self.own.stats() | {"mounts": [mount.stats() for mount in self.mounts]}

    # -- reading ---------------------------------------------------------------------------

    def _split(self, level: int, indices: np.ndarray):
        """(part, positions in `indices`, the part's own indices) of all that are asked."""
        per = self.spec.span(level) // self.spec.fanouts[0]  # blocks of a row; of tokens below
        starts = np.array([part.first for part in self._parts], np.int64)
        starts = starts // per if level else starts * self.spec.fanouts[0]
        owner = np.searchsorted(starts, indices, side="right") - 1
        # An empty tree begins where the next one does: the last that begins there has the row.
        for i in np.unique(owner).tolist():
            here = np.flatnonzero(owner == i)
            yield self._parts[i], here, indices[here] - starts[i]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.length:
            raise TreeError(
                f"Tokens {start} to {stop} were asked of {self.uri}, which holds {self.length}."
            )
        found, block = np.zeros(stop - start, np.int32), self.spec.fanouts[0]
        for part in self._parts:
            first = part.first * block
            low, high = max(start, first), min(stop, first + part.blocks * block)
            if not part.number:
                high = stop
            if low < high:
                found[low - start : high - start] = part.tree.tokens(low - first, high - first)
        return found

    def token_blocks(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of blocks [n] → int32 [n, K_1]; dead ones are 0."""
        found = np.zeros((len(indices), self.spec.fanouts[0]), np.int32)
        block = self.spec.fanouts[0]
        for part, here, tokens in self._split(0, np.asarray(indices, np.int64) * block):
            held = tokens // block < part.tree.blocks
            found[here[held]] = part.tree.token_blocks(tokens[held] // block)
        return found

    def gather(self, level: int, indices: np.ndarray) -> np.ndarray:
        """As of a tree."""
        checks.level(self.uri, self.spec, level, lowest=1)
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.count(level):
            raise TreeError(
                f"Gists {indices.min()} to {indices.max()} of level {level} were asked of "
                f"{self.uri}, which holds {self.count(level)}."
            )
        gists = np.zeros((len(indices), *row_shape(self.spec, level)), np.float32)
        for part, here, own in self._split(level, indices):
            held = own < part.tree.count(level)
            gists[here[held]] = part.tree.gather(level, own[held])
            for at, index in zip(here[~held].tolist(), own[~held].tolist(), strict=True):
                if (level, index) in part.ends:
                    gists[at] = part.ends[level, index]
        return gists

    def prefetch(self, level: int, indices: np.ndarray) -> None:
        """As of a tree."""
        for part, _, own in self._split(level, np.asarray(indices, np.int64)):
            part.tree.prefetch(level, own[own < part.tree.count(level)])

    def refresh(self) -> bool:
        """See what the writers of mounted trees have committed; True when anything changed.

        A mounted tree that has grown past its gap shifts those behind it. Others may have refreshed
        an open tree that they share.
        """
        changed = False
        try:
            for tree in self.mounts:
                tree.refresh()
            changed = self.own.refresh()
        finally:
            parts = self._parts[:-1]
            changed |= any(part.seen != _now(part.tree) for part in parts)
            if changed:
                self._lay_out()
        return changed

    # -- writing: our own ------------------------------------------------------------------

    def commit(self, **how) -> None:
        self.own.commit(**how)

    def close(self) -> None:
        for tree in (*self.mounts, self.own):
            tree.close()
