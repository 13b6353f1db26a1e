"""The commit protocol (design: law 6): writers against each other, against death, and readers."""

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mctx.tree.arrays import Arrays
from mctx.tree.head import HeadRecord, StoreError
from mctx.tree.store import Tree, TreeError, TreeSpec
from tests.tree import history
from tests.tree.history import SPEC

REPOSITORY = Path(__file__).parents[2]
FLAT = TreeSpec(fanouts=(4,), slots=1, gist_width=2, fingerprint="", vocab_size=1000)
names = itertools.count()


class Turns:
    """Writers in threads, of which exactly one moves at a time.

    A writer stops before each step that touches the store (HEAD read, HEAD replaced, rows
    written); `schedule` says who takes the next step, and at its end the first one runs on.
    """

    STEPS = ((HeadRecord, "read"), (HeadRecord, "replace"), (Arrays, "write"))

    def __init__(self, schedule: list[int]):
        self._schedule = iter(schedule)
        self._running = []
        self._turn = None
        self._moved = threading.Condition()
        self._thread = threading.local()

    def run(self, *writers) -> None:
        self._running = list(range(len(writers)))
        threads = [threading.Thread(target=self._live, args=item) for item in enumerate(writers)]
        with ExitStack() as patches:
            for owner, name in self.STEPS:
                step = self._in_turn(getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, step))
            for thread in threads:
                thread.start()
            with self._moved:
                self._pass_on()
            for thread in threads:
                thread.join()

    def _live(self, me: int, writer) -> None:
        self._thread.me = me
        with self._moved:
            self._moved.wait_for(lambda: self._turn == me)
        try:
            writer()
        finally:
            with self._moved:
                self._running.remove(me)
                self._pass_on()

    def _in_turn(self, function):
        def step(*arguments):
            with self._moved:
                self._pass_on()
                self._moved.wait_for(lambda: self._turn == self._thread.me)
            return function(*arguments)

        return step

    def _pass_on(self) -> None:
        wanted = next(self._schedule, None)
        self._turn = wanted if wanted in self._running else min(self._running, default=None)
        self._moved.notify_all()


def duel(uri, schedule: list[int]) -> None:
    """Two writers of two commits each: the tree is what was acknowledged, in that order."""
    Tree.create(uri, FLAT).close()
    kept, refusals = [], []

    def writer(name: int):
        def write():
            try:
                tree = Tree.open(uri, mode="w")
                for value in (name, name + 1):
                    tree.append(np.full(4, value), {1: np.full((1, 1, 2), value)})
                    tree.commit()
                    kept.append(value)
            except TreeError as error:
                refusals.append(str(error))

        return write

    Turns(schedule).run(writer(100), writer(200))
    tree = Tree.open(uri)
    np.testing.assert_array_equal(tree.tokens(0, tree.length), np.repeat(kept, 4))
    np.testing.assert_array_equal(tree.gather(1, np.arange(tree.blocks))[:, 0, 0], kept)
    assert len(refusals) <= 1 and ({100, 101} <= set(kept) or {200, 201} <= set(kept))
    assert len(kept) == 4 or "nother writer" in refusals[0]
    tree = Tree.open(uri, mode="w")  # nobody's leftovers are in the way of the next
    tree.append(np.full(4, 300), {1: np.full((1, 1, 2), 300)})
    tree.commit()
    np.testing.assert_array_equal(Tree.open(uri).tokens(0, tree.length), np.repeat([*kept, 300], 4))


STEPS = 2 + 2 * 4  # to open: read, replace; to commit: two writes, read, replace


@pytest.mark.parametrize("first", range(STEPS + 1))
def test_a_rival_may_come_and_stop_at_any_step(first):
    for second in range(STEPS + 1):
        duel(f"memory://duel-{next(names)}", [0] * (first + 1) + [1] * (second + 1))


@pytest.mark.parametrize("first", range(STEPS + 1))
def test_a_rival_may_come_at_any_step_to_a_tree_in_files(first, tmp_path):
    duel(tmp_path, [0] * (first + 1) + [1] * 100)


def test_the_loser_is_told_once_and_plainly():
    uri = "memory://loser"
    loser = Tree.create(uri, SPEC)
    history.append(loser, 20)
    loser.commit()
    history.append(loser, 20)
    with Tree.open(uri, mode="w") as winner:
        for act in (loser.refresh, loser.commit, loser.commit):
            with pytest.raises(TreeError, match="Another writer has taken over memory://loser"):
                act()
        history.append(winner, 8)
    assert Tree.open(uri).length == 28
    history.check(Tree.open(uri))


def test_a_commit_that_failed_can_be_tried_again():
    tree = Tree.create("memory://again", SPEC)
    history.append(tree, 30)
    with mock.patch.object(HeadRecord, "replace", side_effect=TreeError("No network.")):
        with pytest.raises(TreeError, match="network"):
            tree.commit()
    assert Tree.open("memory://again").length == 0
    history.append(tree, 5)
    history.check(tree)
    tree.commit()
    history.check(Tree.open("memory://again"))
    assert Tree.open("memory://again").length == 35


@pytest.fixture
def small_shards(monkeypatch):
    """Of 32 rows, in chunks of 8: what is staged at once in bulk fills some."""
    monkeypatch.setattr("mctx.tree.arrays.BULK_SHARD_BYTES", 2**10)
    monkeypatch.setattr("mctx.tree.arrays.BULK_CHUNK_BYTES", 2**8)


def test_what_is_written_ahead_of_its_commit_is_nobodys_until_then(tmp_path, small_shards):
    rng = random.Random(0)
    with Tree.create(tmp_path, SPEC, bulk=True) as tree:
        reader = Tree.open(tmp_path)
        history.append(tree, 2000)
        tree._ahead._begun[0][0]()  # waits until it is stored
        assert next(tmp_path.glob("*/tokens/c.*")) and not reader.refresh()
        for count in (1, 300, 7, 513, 1024, 90, 2):
            history.append(tree, count)
            history.check(tree)
            if rng.random() < 0.6:
                tree.commit(wait=False)
    assert reader.refresh() and reader.length == tree.length
    history.check(reader)
    with Tree.open(tmp_path, mode="w", bulk=True) as tree:
        history.append(tree, 1000)
        tree.close()  # nobody will have it
        assert not reader.refresh()


def test_new_folders_are_synced_before_head_leads_into_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.stat(fd).st_ino) or fsync(fd))
    tree = Tree.create(tmp_path / "tree", SPEC)
    history.append(tree, 30)
    tree.commit()
    wanted = [tmp_path / "tree" / "epoch-00000001", tmp_path]
    assert {path.stat().st_ino for path in wanted} == set(synced)
    count = len(synced)
    history.append(tree, 30)
    tree.commit()
    assert len(synced) == count


def test_a_row_that_could_not_be_written_ahead_is_written_by_the_next_commit(small_shards):
    """Storage that fails while rows are written ahead, and again as the commit is made."""
    tree = Tree.create("memory://ahead", SPEC, bulk=True)
    waits = []

    def lose(arrays, *rows):
        def wait():
            waits.append(rows[0])
            raise StoreError("No network.")

        return wait

    with mock.patch.object(Arrays, "write", lose):
        history.append(tree, 1000)
    with pytest.raises(StoreError, match="network"):
        tree.commit()
    assert waits and Tree.open("memory://ahead").length == 0
    with mock.patch.object(Arrays, "write", side_effect=StoreError("No network.")):
        history.append(tree, 1000)  # says nothing: it is the commit that fails
        with pytest.raises(StoreError, match="network"):
            tree.commit()
    tree.commit()
    assert Tree.open("memory://ahead").length == 2000
    history.check(Tree.open("memory://ahead"))


def test_a_commit_whose_answer_was_lost_is_not_taken_for_a_rival():
    """The retry inside a network store finds a new generation, and it is its own."""
    tree = Tree.create("memory://answer", SPEC)
    history.append(tree, 30)
    replace = HeadRecord.replace

    def write_twice(record, head, generation):
        assert replace(record, head, generation)
        return replace(record, head, generation)

    with mock.patch.object(HeadRecord, "replace", write_twice):
        tree.commit()
    assert Tree.open("memory://answer").length == 30


def test_a_reader_follows_and_sees_only_commits():
    writer = Tree.create("memory://follow", SPEC)
    reader = Tree.open("memory://follow")
    assert not reader.refresh()
    for _ in range(10):
        history.append(writer, 17)
        assert not reader.refresh()
        writer.commit()
        assert reader.length == writer.length - 17
        assert reader.refresh() and reader.length == writer.length
        history.check(reader)
    with Tree.open("memory://follow", mode="w") as successor:
        assert not reader.refresh()
        history.append(successor, 3)
    assert reader.refresh()
    history.check(reader)


def test_a_reader_notices_that_its_tree_was_replaced(tmp_path):
    Tree.create(tmp_path, SPEC).close()
    reader = Tree.open(tmp_path)
    (tmp_path / "HEAD").unlink()
    with pytest.raises(TreeError, match="removed or replaced"):
        reader.refresh()
    Tree.create(tmp_path, FLAT).close()
    with pytest.raises(TreeError, match="removed or replaced"):
        reader.refresh()


@pytest.mark.parametrize("epochs, noted", [(1, True), (3, True), (1, False)])
def test_a_reader_tells_its_tree_from_one_of_the_same_models_at_its_place(epochs, noted, tmp_path):
    with Tree.create(tmp_path, SPEC) as first:
        history.append(first, 40)
        if not noted:  # a tree of before every one had an identity
            first.commit(notes={})
    reader = Tree.open(tmp_path)
    shutil.rmtree(tmp_path)
    with Tree.create(tmp_path, SPEC) as second:
        history.append(second, 60)
    for _ in range(epochs - 1):
        Tree.open(tmp_path, "w").close()
    with pytest.raises(TreeError, match="removed or replaced"):
        reader.refresh()


@pytest.mark.parametrize("starting", [True, False])
def test_killed_at_any_moment_nothing_committed_is_lost_or_torn(tmp_path, starting):
    """A reader follows a writing process, which is killed while it starts or while it commits.

    Every other one writes ahead of its commits.
    """
    rng = random.Random(starting)
    Tree.create(tmp_path, SPEC).close()
    reader = Tree.open(tmp_path)
    command = [sys.executable, "-m", "tests.tree.history", str(tmp_path)]
    for how in ([], ["bulk"]) * 2:
        process = subprocess.Popen(
            command + how, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        acknowledged = "0" if starting else process.stdout.readline()
        end = time.monotonic() + rng.uniform(0.1, 0.7 if starting else 0.3)
        while time.monotonic() < end:
            reader.refresh()
            history.check(reader)
        process.kill()
        printed = process.communicate()[0]
        complete = printed[: printed.rfind("\n") + 1].split() or [acknowledged]
        reader.refresh()
        assert reader.length >= int(complete[-1])
        history.check(reader)
        history.check(Tree.open(tmp_path))
    assert reader.length > 0 or starting
    with Tree.open(tmp_path, mode="w") as tree:
        history.append(tree, 40)
    history.check(Tree.open(tmp_path))
