"""Documents worked into a history: which rows change, and the gists above them.

Nothing here touches the tree. A `Draft` collects the changes of one edit, all of them are staged
at once, and one commit publishes them: so a reader sees a document, its gists and its ancestors as
they were before or as they are after.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mctx.tree import checks
from mctx.tree.arrays import from_bits, row_shape, to_bits
from mctx.tree.documents import Documents, Span, is_name, live_within
from mctx.tree.head import TreeError
from mctx.tree.state import Change
from mctx.tree.store import Tree

NAMED = 3  # documents that are named where another was asked for
WINDOWS_AT_ONCE = 16  # of a document: their rows are in memory together
NONE = np.zeros((0, 1, 1), np.float32)  # gists of no blocks
Run = tuple[int, int]  # blocks [start, stop)


class Draft:
    """Changes to a tree that are being worked out, and the tree as they would leave it."""

    def __init__(self, tree: Tree):
        self._tree, self.spec = tree, tree.spec
        self.documents = tree.documents
        self.changes: list[Change] = []
        self._counts = [tree.length, *(tree.count(level) for level in self._levels())]

    def _levels(self) -> range:
        return range(1, self.spec.levels + 1)

    @property
    def block(self) -> int:
        return self.spec.fanouts[0]

    @property
    def length(self) -> int:
        return self._counts[0]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens as they are in the tree."""
        return self._tree.tokens(start, stop)

    def count(self, level: int) -> int:
        """Rows of a level: tokens at level 0."""
        return self._counts[level]

    def write(self, level: int, start: int, values: np.ndarray) -> None:
        """Rows from `start` on become `values`: tokens, or gists."""
        self._change(Change(level, start, len(values), values))

    def kill(self, level: int, start: int, stop: int) -> None:
        """Rows [start, stop) become dead."""
        self._change(Change(level, start, stop - start, None))

    def write_blocks(self, first: int, tokens: np.ndarray, gists: np.ndarray, stop: int) -> None:
        """Whole blocks of tokens and their gists from block `first` on; dead ones up to `stop`."""
        self.write(0, first * self.block, tokens)
        self.write(1, first, gists)
        self.kill_blocks(first + len(gists), stop)

    def kill_blocks(self, first: int, stop: int) -> None:
        self.kill(0, first * self.block, stop * self.block)
        self.kill(1, first, stop)

    def _change(self, change: Change) -> None:
        if change.length:
            self.changes.append(change)
            counts = self._counts
            counts[change.level] = max(counts[change.level], change.start + change.length)

    def gather(self, level: int, indices: np.ndarray) -> np.ndarray:
        """Gists as a reader would have them: [n] -> float32 [n, slots, gist_width]."""
        gists = np.zeros((len(indices), *row_shape(self.spec, level)), np.float32)
        there = indices < self._tree.count(level)
        if there.any():
            gists[there] = self._tree.gather(level, indices[there])
        for change in self.changes:
            if change.level == level:
                here = (indices >= change.start) & (indices < change.start + change.length)
                gists[here] = 0.0
                if change.values is not None:
                    rows = change.values[indices[here] - change.start]
                    gists[here] = from_bits(to_bits(rows))
        return gists

    def check_room(self, length: int) -> None:
        """Refuses a history of more tokens than can be counted, before anything is read."""
        checks.room(self._tree.uri, self.spec, length)

    def stage(self) -> None:
        self._tree.stage(self.changes, self.documents)


def ascend(reader, draft: Draft, runs: Iterable[Run]) -> None:
    """Makes anew every gist of level 2 and up that covers a changed block, or is complete now.

    A dead child is stood in for by its live siblings in turn: what GistNet pools is always K_l
    gists that it might have made. A node without a live block beneath it is dead.

    Args:
      reader: `mctx.tree.ingest.Reader`. runs: blocks that changed.
    """
    runs, dead = list(runs), draft.documents.dead(draft.block)
    for level in range(2, draft.spec.levels + 1):
        k = draft.spec.fanouts[level - 1]
        wide = draft.spec.span(level - 1) // draft.block  # of a child, in blocks
        have, whole = draft.count(level), draft.count(level - 1) // k
        touched = [np.arange(a // (wide * k), -(-b // (wide * k))) for a, b in runs]
        nodes = np.unique(np.concatenate([*touched, np.arange(have, whole)]))
        nodes = nodes[nodes < whole]
        if not len(nodes):
            continue
        children = (nodes[:, None] * k + np.arange(k)).astype(np.int64)  # [n, k]
        alive = live_within(dead, children * wide, (children + 1) * wide) > 0
        some = alive.any(axis=1)
        chosen = np.take_along_axis(children, stand_ins(alive), axis=1)[some]
        made = reader.pool(level, draft.gather(level - 1, chosen.reshape(-1)))
        gists = np.zeros((len(nodes), *made.shape[1:]), made.dtype)
        gists[some] = made
        new_run = (np.diff(nodes) != 1) | (some[1:] != some[:-1])
        for part in np.split(np.arange(len(nodes)), 1 + np.flatnonzero(new_run)):
            first, last = int(nodes[part[0]]), int(nodes[part[-1]])
            if some[part[0]]:
                draft.write(level, first, gists[part])
            else:
                draft.kill(level, first, last + 1)


def stand_ins(alive: np.ndarray) -> np.ndarray:
    """For each child the one that is pooled in its place: bool [n, k] -> int [n, k].

    Live children stand for themselves, and in turn for the dead ones.
    """
    order = np.argsort(~alive, axis=1, kind="stable")  # the live ones first
    count = np.maximum(alive.sum(axis=1, keepdims=True), 1)
    turn = (np.cumsum(~alive, axis=1) - 1) % count
    own = np.arange(alive.shape[1])
    return np.where(alive, own, np.take_along_axis(order, turn, axis=1))


def add(reader, draft: Draft, name: str, tokens: np.ndarray, pad: int) -> list[Run]:
    """A new document at the end; its span is whole windows. Returns the blocks that changed."""
    check_new(draft.documents, name, tokens)
    return _place(reader, draft, name, 1, tokens, pad)


def replace(reader, draft: Draft, name: str, tokens: np.ndarray, pad: int) -> list[Run]:
    """Another text for a document; returns the blocks that changed.

    Windows whose tokens stay are not read again. A text that outgrows its span goes to the end.
    """
    old = _known(draft.documents, name)
    if not fits(draft.documents, name, tokens):
        died = delete(draft, name)
        return died + _place(reader, draft, name, old.version + 1, tokens, pad)
    block, window = draft.block, reader.model.window
    new = _whole(tokens, block, pad, name)
    before = draft.tokens(old.start, old.start + -(-old.length // block) * block)
    runs, pieces = [], []
    for at in range(0, max(len(before), len(new)), window):
        piece = new[at : at + window]
        if not np.array_equal(before[at : at + window], piece):
            first = (old.start + at) // block
            runs.append((first, first + window // block))
            pieces.append(piece)
    for (first, stop), piece, gists in zip(
        runs, pieces, _gists(reader, pieces, pad), strict=True
    ):
        draft.write_blocks(first, piece, gists, stop)
    span = old._replace(version=old.version + 1, length=len(tokens))
    draft.documents = draft.documents.with_span(span)
    return runs


def delete(draft: Draft, name: str) -> list[Run]:
    """A document's span becomes dead; returns it, as blocks."""
    span = _known(draft.documents, name)
    run = span.start // draft.block, span.stop // draft.block
    draft.kill_blocks(*run)
    draft.documents = draft.documents.without(name)
    return [run]


def _place(reader, draft, name, version, tokens, pad):
    """A document at the end of the history, with what is left of its last window dead."""
    block, window = draft.block, reader.model.window
    start, whole = draft.length, _whole(tokens, block, pad, name)
    if start % block:
        raise TreeError("The history ends inside a block; a document begins at a block's border.")
    stop = start + -(-len(whole) // window) * window
    draft.check_room(stop)
    pieces = [whole[at : at + window] for at in range(0, len(whole), window)]
    for at, gists in enumerate(_gists(reader, pieces, pad)):
        first = (start + at * window) // block
        draft.write_blocks(first, pieces[at], gists, first + window // block)
    span = Span(name, version, start, stop, len(tokens))
    draft.documents = draft.documents.with_span(span)
    return [(start // block, stop // block)]


def check_new(documents: Documents, name: str, tokens: np.ndarray) -> None:
    """Raises TreeError where these are no new document."""
    if not is_name(name):
        raise TreeError(f"A document's name is text that UTF-8 can spell, not {name!r}; rename it.")
    if name in documents:
        raise TreeError(
            f"A document needs a name of its own, not {name!r}; replace the one that is there."
        )
    _whole(tokens, 1, 0, name)


def fits(documents: Documents, name: str, tokens: np.ndarray) -> bool:
    """Whether a document's span has room for another text."""
    span = _known(documents, name)
    return len(tokens) <= span.stop - span.start


def _known(documents, name):
    if name not in documents:
        some = ", ".join(map(repr, list(documents)[:NAMED]))
        more = ", …" if len(documents) > NAMED else ""
        there = f"name one of those there are: {some}{more}" if some else "it has none: add one"
        raise TreeError(f"There is no document {name!r} here; {there}.")
    return documents[name]


def _whole(tokens, block, pad, name):
    """Tokens up to a block's border."""
    tokens = np.asarray(tokens)
    if not len(tokens):
        raise TreeError(f"The document {name!r} is empty; give it a token, or delete it.")
    return np.pad(tokens, (0, -len(tokens) % block), constant_values=pad)


def _gists(reader, pieces, pad):
    """Gists of the whole blocks of windows [<= window]: each [n, slots, width].

    A window that is not full is padded, which no block before the padding can see.
    """
    size, block = reader.model.window, reader.model.gist.block
    for i in range(0, len(pieces), WINDOWS_AT_ONCE):
        some = [piece for piece in pieces[i : i + WINDOWS_AT_ONCE] if len(piece)]
        padded = [np.pad(piece, (0, size - len(piece)), constant_values=pad) for piece in some]
        made = np.asarray(reader.window_gists(np.concatenate(padded))) if some else ()
        found = iter(made)
        for piece in pieces[i : i + WINDOWS_AT_ONCE]:
            yield next(found)[: len(piece) // block] if len(piece) else NONE
