"""The MegaContext tree: every token and every gist of one history, on TensorStore.

    with Tree.create("runs/history", TreeSpec(fanouts=(32, 8, 8), ...)) as tree:
        tree.append(tokens, {1: gists, 2: parents})
    tree = Tree.open("runs/history")
    tree.tokens(0, 64), tree.gather(1, np.array([0, 1]))

The commit protocol (design: law 6). To open for writing is to take the next epoch, by
compare-and-swap on HEAD, before anything else is written. The newest epoch owns the tree: the
writer before it learns at its next commit that it was succeeded, and nothing it wrote since is
ever readable, because a writer's rows go to its own epoch's arrays and only HEAD makes them part
of the tree. A commit waits until its rows are stored, then replaces HEAD atomically. Nothing that
can be read is ever overwritten: a replacement is new rows and another list of extents.

Reading: mctx/tree/view.py; arrays: arrays.py; HEAD: head.py; what is staged: state.py; writing it:
ahead.py; documents: documents.py and editing.py; compaction: compact.py.
"""

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import tensorstore as ts

from mctx.tree import arrays as stored
from mctx.tree import checks
from mctx.tree.ahead import Ahead, Wait
from mctx.tree.arrays import Arrays
from mctx.tree.background import Background
from mctx.tree.documents import Documents
from mctx.tree.extents import Extents, first_rows
from mctx.tree.head import Head, HeadRecord, TreeError, TreeSpec
from mctx.tree.mirror import MirrorConfig
from mctx.tree.state import Change, State
from mctx.tree.view import View

__all__ = ["Change", "Tree", "TreeError", "TreeSpec"]


class Tree(View):
    """One history; made by `Tree.create` or `Tree.open`.

    Every error is a `TreeError`, a `UserError` with one sentence. One thread may append and
    commit while others read.
    """

    def __init__(
        self,
        uri: str,
        kvstore: ts.KvStore,
        record: HeadRecord,
        head: Head,
        generation: bytes | None,
        taken: int = 0,
        bulk: bool = False,
        mirror: MirrorConfig | None = None,
    ):
        super().__init__(uri, Arrays(kvstore, uri, head.spec, bulk), State.at(head), mirror)
        self.kvstore = kvstore
        self._record = record
        self._lock = threading.Lock()  # between who stages and who commits in the background
        self._background = Background()
        self._own(head, generation, taken)
        if self._mirror.config.load:
            self._mirror.load(head)

    def _own(self, head: Head, generation: bytes | None, taken: int = 0) -> None:
        """Stands at `head`; to write, when there is a generation to replace it under.

        taken: how many epochs up to the head's are this writer's.
        """
        self._generation, self._taken = generation, taken
        self._ahead = Ahead(self._arrays)
        writes = generation is not None
        self._state = State.at(head, [0] * (head.spec.levels + 1) if writes else None)

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike,
        spec: TreeSpec,
        bulk: bool = False,
        mirror: MirrorConfig | None = None,
    ) -> "Tree":
        """A new, empty tree, open for writing; arguments as for `open`.

        TreeError when one is there already.
        """
        uri = os.fspath(uri)
        kvstore = stored.open_kvstore(uri)
        record = HeadRecord(kvstore, uri)
        head, generation = record.read()
        if head is not None:
            raise TreeError(f"There is a tree at {uri} already; open it or choose another path.")
        if stored.has_remains(kvstore, uri):
            raise TreeError(f"{uri} holds parts of a tree without its HEAD; choose an empty path.")
        if stored.has_others(kvstore):
            raise TreeError(f"{uri} holds other files; a tree needs a folder of its own.")
        taken = record.take(Head.new(spec), generation)
        return cls(uri, kvstore, record, *taken, bulk=bulk, mirror=mirror)

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike,
        mode: str = "r",
        fingerprint: str | None = None,
        epochs: int = 1,
        bulk: bool = False,
        mirror: MirrorConfig | None = None,
    ) -> "Tree":
        """An existing tree, mode 'r' to read or 'w' to read and append.

        'w' takes the tree over: an older writer is refused at its next commit. `fingerprint`, if
        given, must be the one that the tree was created with. `epochs`: how many to take, the
        last for this handle and those before it for writers whose rows it will `adopt`. `bulk`:
        much is expected at once: files are large and are written as soon as enough was appended
        to fill them, and small commits may be slow. `mirror`: how much of the gists to
        hold in memory. TreeError when there is no tree, or a damaged one, or one of a newer format
        or of other models.
        """
        if mode not in ("r", "w"):
            raise TreeError(f"A tree is opened with mode 'r' or 'w', not {mode!r}.")
        uri = os.fspath(uri)
        kvstore = stored.open_kvstore(uri)
        record = HeadRecord(kvstore, uri)
        head, generation = record.read()
        if head is None:
            raise TreeError(f"There is no MegaContext tree at {uri}; check the path or create one.")
        if fingerprint is not None and fingerprint != head.spec.fingerprint:
            raise TreeError(
                f"The gists of {uri} were made by models {head.spec.fingerprint!r}, not by "
                f"{fingerprint!r}; use those models (--lora and --dtype make others), make the "
                "gists anew with `python -m experiments.tree rebuild`, or ingest into a new tree."
            )
        if mode == "r":
            return cls(uri, kvstore, record, head, None, mirror=mirror)
        taken = record.take(head, generation, epochs)
        return cls(uri, kvstore, record, *taken, bulk=bulk, mirror=mirror)

    @classmethod
    def exists(cls, uri: str | os.PathLike) -> bool:
        """Whether there is a tree to open; TreeError when its HEAD is there but damaged."""
        uri = os.fspath(uri)
        return HeadRecord(stored.open_kvstore(uri), uri).read()[0] is not None

    @property
    def own(self) -> "Tree":
        """The tree that is written: this one. (An overlay has others before it.)"""
        return self

    @property
    def epoch(self) -> int:
        """The newest writer's: this handle's own, if it writes."""
        return self.head.epoch

    @property
    def writable(self) -> bool:
        return self._generation is not None

    def _reading(self, read: Callable[[State], np.ndarray]) -> np.ndarray:
        """What `read` makes of the state; of the same rows elsewhere, if they were compacted."""
        state = self._state
        try:
            return read(state)
        except TreeError as error:
            moved = self._moved(state, error)
        return read(moved)

    def _moved(self, state: State, error: TreeError) -> State:
        """The rows of a reader's state where they lie now; `error` if that is where they lay."""
        if self.writable:
            raise error
        head = self._record.read()[0]
        if head is None or head.extents == state.head.extents or not state.head.may_become(head):
            raise error
        if head.edition != state.edition:
            raise TreeError(
                f"What was open of {self.uri} has been replaced and compacted away since; "
                "refresh it, or open it again."
            ) from error
        extents = [
            first_rows(each, state.rows(level)) for level, each in enumerate(head.extents)
        ]
        self._state = State.at(replace(head, extents=extents, documents=state.documents))
        return self._state

    def refresh(self) -> bool:
        """See what a live writer has committed since; True when there is more, or other, to read.

        A writer's own handle has nothing to see; TreeError when it was taken over, or when
        another tree lies at its place.
        """
        head, known = self._record.read()[0], self._state.head
        if head is None or not known.may_become(head):
            raise TreeError(f"The tree at {self.uri} was removed or replaced; open it again.")
        if self.writable:
            self._check_own(head)
            return False
        self._state = State.at(head)
        return head.edition != known.edition or head.extents != known.extents

    # -- writing ---------------------------------------------------------------------------

    def append(self, tokens: np.ndarray, gists: Mapping[int, np.ndarray] | None = None) -> None:
        """Add tokens, and to each level the gists that follow those it has; `commit` stores them.

        tokens: integers [n], any n. gists: level → float [m, slots, gist_width], the next m nodes
        of that level, whose tokens must be in the tree by now. They are kept as bfloat16.
        Arrays are copied, but for int32 tokens and bfloat16 gists in read-only arrays (as JAX
        gives them, or a file that is mapped): those must stay as they are until the commit.
        """
        for level in gists or {}:
            checks.level(self.uri, self.spec, level, lowest=1)
        rows = {0: tokens} | dict(gists or {})
        self.stage([Change(one, self._rows_of(one), len(rows[one]), rows[one]) for one in rows])

    def stage(self, changes: Sequence[Change], documents: Documents | None = None) -> None:
        """Change or add rows, and which documents there are; all at once, and in memory only.

        What comes with one call is seen together, and published by one commit. The tokens and
        gists that are replaced stay readable for those who know the state before.
        """
        self._check_writable()
        with self._lock:
            wanted = checks.changes(self.uri, self._state, changes)
            self._state = self._state.staged(wanted, documents)
            if self._arrays.bulk:
                self._ahead.begin(self._state)

    def adopt(self, level: int, epoch: int, row: int, length: int) -> None:
        """Add rows that another process has stored in an epoch that this handle took for it."""
        self._check_writable()
        if not self.head.epoch - self._taken < epoch < self.head.epoch:
            raise TreeError(f"Epoch {epoch} of {self.uri} is not one that was taken for others.")
        self.place(level, self._rows_of(level), epoch, row, length)

    def place(self, level: int, start: int, epoch: int, row: int, length: int) -> None:
        """Say that logical rows [start, start + length) lie at another place, stored already.

        They must be what they were, or rows that follow the last.
        """
        self._check_writable()
        with self._lock:
            checks.changes(self.uri, self._state, [Change(level, start, length, None)])
            self._state = self._state.placed(level, start, epoch, row, length)

    def store(self, level: int, rows: np.ndarray) -> int:
        """Store rows, given as stored, without keeping them in memory; returns the first's row.

        They are nobody's until `place` and a commit. Only while nothing is staged.
        """
        self._check_writable()
        with self._lock:
            row = self._state.first[level]
            self._arrays.write(level, self.head.epoch, row, rows)()
            first = list(self._state.first)
            first[level] += len(rows)
            self._state = self._state._replace(first=tuple(first))
        return row

    def commit(self, wait: bool = True, **fields) -> None:
        """Make all that was staged part of the tree, durably and at once.

        wait: False returns at once and leaves the work to a thread; the next commit, or `close`,
        waits for it and raises its error. fields: of the `Head` to publish, where they change
        (`notes`, `retired`). TreeError when another writer has taken the tree over, or a row
        cannot be stored; the tree is then as it was, and what was staged is still staged.
        """
        self._check_writable()
        self.settle()
        if not (self.staged or fields):
            return
        with self._lock:
            state, lengths = self._state, self._state.lengths()
            store = self._ahead.claim(state, lengths)
        job = functools.partial(self._commit, state, lengths, store, fields)
        if wait:
            job()
        else:
            self._background.run(job)

    def _commit(self, state: State, lengths: Sequence[int], store: Wait, fields: dict) -> None:
        staged = {name: getattr(state, name) for name in ("extents", "documents", "edition")}
        head = replace(state.head, **staged, **fields)
        try:
            store()
            self._publish(head)
        except BaseException:
            with self._lock:
                self._ahead.forget()
            raise
        with self._lock:
            self._state = self._state.committed(head, lengths)
        for level, (rows, length) in enumerate(zip(state.pending, lengths, strict=True)):
            if level and length:
                row = state.first[level]
                self._mirror.add(level, head.epoch, row, rows.parts(0, length))

    def remake(self, spec: TreeSpec, gists: Mapping[int, Extents], notes: dict) -> None:
        """Publish the same tokens with other gists, of other models, stored already; then close.

        gists: where those of every level lie.
        """
        self._check_writable()
        self.settle()
        extents = [self.head.extents[0], *(gists[level] for level in sorted(gists))]
        edition = self.head.edition + 1
        self._publish(
            replace(self.head, spec=spec, extents=extents, edition=edition, notes=notes)
        )
        self.close()

    @property
    def staged(self) -> bool:
        """Whether there is anything to commit."""
        state = self._state
        same = state.extents == state.head.extents and state.documents == state.head.documents
        return not same

    def retire(self, epochs: Sequence[tuple[int, float]]) -> None:
        """Publish which epochs are retired, and since when; HEAD then needs no folder but ours.

        The others are those of the epochs in which rows lie.
        """
        self._check_writable()
        self._record.forget_index()
        # A rebuild under way has rows in epochs that no extent names yet: it begins anew.
        notes = {name: note for name, note in self.head.notes.items() if name != "rebuild"}
        self.commit(retired=tuple(epochs), notes=notes)

    def renew(self) -> None:
        """Go on under a new epoch, whose folder is empty; nothing may be staged."""
        self._check_writable()
        self.settle()
        if self._taken > 1:
            raise TreeError(f"Others still write epochs of {self.uri}; let them end first.")
        if any(self._state.first):
            self._own(*self._record.take(self.head, self._generation))

    def close(self) -> None:
        """End writing. What was staged and not committed is dropped."""
        self._mirror.close()
        try:
            self.settle()
        finally:
            self._ahead.close()
            self._own(self.head, None)

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Commit, unless an error is on its way out; then close."""
        try:
            if kind is None and self.writable:
                self.commit()
        finally:
            self.close()

    @property
    def committing(self) -> bool:
        """Whether a commit is under way in the background."""
        return self._background.busy

    def settle(self) -> None:
        """Wait for a commit in the background, and raise its error."""
        self._background.settle()

    def _publish(self, head: Head) -> None:
        """Replace HEAD by `head` if this handle still owns the tree."""
        generation = self._record.replace(head, self._generation)
        if generation is None:
            # Another writer, or a commit of our own that was taken for failed.
            current, generation = self._record.read()
            self._check_own(current)
            generation = self._record.replace(head, generation)
            if generation is None:
                self._check_own(None)
        self._generation = generation

    def _check_own(self, current: Head | None) -> None:
        if current is None or current.writer != self._state.head.writer:
            raise TreeError(
                f"Another writer has taken over {self.uri} and nothing appended here since the "
                "last commit was kept; open the tree again to go on from its state."
            )

    def _check_writable(self) -> None:
        if not self.writable:
            raise TreeError(f"{self.uri} is not open for writing; open it with mode 'w'.")

    def _rows_of(self, level: int) -> int:
        """Rows of a level: unlike `count`, tokens at level 0."""
        checks.level(self.uri, self.spec, level, lowest=0)
        return self._state.rows(level)
