"""All gists of a tree made anew from its tokens, by other models.

The new gists go where no reader looks, and HEAD notes from time to time how far they have come.
So the old tree stays readable until one commit replaces all of its gists, and a rebuild that was
killed goes on from the last note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np

from mctx.tree import checks
from mctx.tree.arrays import Arrays, row_bytes
from mctx.tree.documents import live_within
from mctx.tree.editing import ascend
from mctx.tree.extents import Extents
from mctx.tree.head import Head, TreeError, TreeSpec
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.mirror import MirrorConfig
from mctx.tree.state import Change, State
from mctx.tree.store import Tree
from mctx.tree.view import View

NOTE = "rebuild"
WINDOWS_AT_ONCE = 16
STORE_BYTES = 2**23  # of gists of one level: a shard, so that few are written twice

Progress = Callable[[int, int], None]  # blocks done, blocks in all


def rebuild(
    uri: str,
    reader: Reader,
    fingerprint: str,
    every: float = 60.0,
    progress: Progress = lambda done, total: None,
) -> bool:
    """Makes all gists of a tree anew with `reader`'s models, and publishes them in one commit.

    Args:
      fingerprint: names the models. every: seconds between two notes of the progress.

    Returns:
      False if the tree's gists are of these models already.

    Raises:
      TreeError: the models do not fit the tree's tokens, or another writer took the tree over.
    """
    with Tree.open(uri) as tree:
        spec = _new_spec(tree.spec, reader, fingerprint, uri)
        if tree.spec == spec:
            return False
    with Tree.open(uri, mode="w", bulk=True, mirror=MirrorConfig(load=False)) as tree:
        remade, noted = _begin(tree, spec), time.monotonic()
        total = tree.blocks
        for windows in _windows(tree, reader.model.window, remade.blocks):
            _remake(tree, reader, remade, *windows)
            progress(remade.blocks, total)
            if time.monotonic() - noted >= every or remade.staged_bytes >= STORE_BYTES:
                remade.store()
                tree.commit(notes=tree.head.notes | {NOTE: remade.note(tree)})
                noted = time.monotonic()
        remade.store()
        notes = {name: note for name, note in tree.head.notes.items() if name != NOTE}
        levels = range(1, spec.levels + 1)
        tree.remake(spec, {level: remade.extents(level) for level in levels}, notes)
    return True


def _new_spec(old: TreeSpec, reader: Reader, fingerprint: str, uri: str) -> TreeSpec:
    spec = tree_spec(reader.model, fingerprint)
    for name, ours, theirs in (
        ("a vocabulary", old.vocab_size, spec.vocab_size),
        ("blocks", old.fanouts[0], spec.fanouts[0]),
    ):
        if ours != theirs:
            raise TreeError(
                f"{uri} has {name} of {ours} and these models want {theirs}; its tokens cannot "
                "be read by them, so ingest the text into a new tree."
            )
    return spec


class _Remade(View):
    """The new gists so far: stored ones, and those in memory. A draft, for `ascend`."""

    def __init__(self, tree: Tree, head: Head):
        arrays = Arrays(tree.kvstore, tree.uri, head.spec, bulk=True)
        first = [0] * (head.spec.levels + 1)
        super().__init__(tree.uri, arrays, State.at(head, first), MirrorConfig(load=False))

    @property
    def block(self) -> int:
        return self.spec.fanouts[0]

    @property
    def blocks(self) -> int:
        """Blocks whose gists are made."""
        return self._state.rows(1)

    @property
    def staged_bytes(self) -> int:
        """Of the gists that are in memory only, at the level with most."""
        sizes = (row_bytes(self.spec, level) for level in range(self.spec.levels + 1))
        return max(n * size for n, size in zip(self._state.lengths(), sizes, strict=True))

    def write(self, level: int, start: int, values: np.ndarray) -> None:
        change = Change(level, start, len(values), values)
        wanted = checks.changes(self.uri, self._state, [change])
        self._state = self._state.staged(wanted, None)

    def kill(self, level: int, start: int, stop: int) -> None:
        self._state = self._state.staged([Change(level, start, stop - start, None)], None)

    def store(self) -> None:
        """Writes what is in memory, durably."""
        state, lengths = self._state, self._state.lengths()
        waits = [
            self._arrays.write(level, self.head.epoch, row, *rows.parts(0, len(rows)))
            for level, (rows, row) in enumerate(zip(state.pending, state.first, strict=True))
        ]
        for wait in waits:
            wait()
        self._state = state.committed(replace(state.head, extents=state.extents), lengths)

    def note(self, tree: Tree) -> dict:
        """What another call needs to go on; to be read by `_begin`."""
        extents = [each.table.tolist() for each in self._state.extents[1:]]
        return {"spec": asdict(self.spec), "edition": tree.head.edition, "extents": extents}


def _begin(tree: Tree, spec: TreeSpec) -> _Remade:
    """The new gists that an earlier call left, if the same tokens still stand before them."""
    extents = ((),) * spec.levels
    note = tree.head.notes.get(NOTE)
    if note and note["edition"] == tree.head.edition and TreeSpec(**note["spec"]) == spec:
        extents = tuple(Extents(np.array(each, np.int64)) for each in note["extents"])
    return _Remade(tree, replace(tree.head, spec=spec, extents=(tree.extents(0), *extents)))


def _windows(tree: Tree, window: int, done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows that hold blocks from `done` on, some at once: blocks (start [n], stop [n])."""
    block, end = tree.spec.fanouts[0], tree.blocks
    borders = np.append(tree.borders // block, end)
    for low, high in zip(borders[:-1], np.minimum(borders[1:], end), strict=True):
        starts = np.arange(low, high, window // block)
        stops = np.minimum(starts + window // block, high)
        starts, stops = starts[stops > done], stops[stops > done]
        for at in range(0, len(starts), WINDOWS_AT_ONCE):
            yield starts[at : at + WINDOWS_AT_ONCE], stops[at : at + WINDOWS_AT_ONCE]


def _remake(tree: Tree, reader: Reader, remade: _Remade, starts, stops) -> None:
    """Gists of the blocks of some neighbouring windows, and all that they complete."""
    model, first = reader.model, remade.blocks
    blocks = starts[:, None] + np.arange(model.window // model.gist.block)  # [n, blocks]
    there = blocks < stops[:, None]
    dead = tree.dead
    alive = there & (live_within(dead, blocks, blocks + 1) > 0)
    some = alive.any(axis=1)
    tokens = np.zeros((*blocks.shape, model.gist.block), np.int32)
    tokens[alive] = tree.token_blocks(blocks[alive])
    gists = np.zeros((*blocks.shape, model.gist.entries[0], model.gist.width), np.float32)
    if some.any():
        gists[some] = reader.window_gists(tokens[some].reshape(-1))
    new = there & (blocks >= first)
    alive, gists = alive[new], gists[new]
    for run in np.split(np.arange(len(alive)), 1 + np.flatnonzero(np.diff(alive))):
        start = first + int(run[0])
        if alive[run[0]]:
            remade.write(1, start, gists[run])
        else:
            remade.kill(1, start, start + len(run))
    ascend(reader, remade, [(first, first + len(alive))])
