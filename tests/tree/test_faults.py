"""Documents and compaction under faults: the old version or the new one, and never a mix."""

import contextlib
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mctx.tree import compact as compaction
from mctx.tree import head as heads
from mctx.tree.arrays import Arrays
from mctx.tree.compact import compact
from mctx.tree.head import HeadRecord
from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree, TreeError
from mctx.tree.verify import verify
from tests.tree.codebase import PAD, SPEC, WINDOW, History, Reader, checked, tokens_of
from tests.tree.test_writers import Turns

REPOSITORY = Path(__file__).parents[2]
numbers = itertools.count()


def writer(tree) -> Ingest:
    return Ingest(Reader(), tree, pad=PAD)


def worn(uri) -> tuple[Tree, History]:
    """A committed tree in which much was replaced and moved."""
    tree, history = Tree.create(uri, SPEC), History()
    ingest = writer(tree)
    for i, name in enumerate("abcabcab"):
        tokens = tokens_of(i, 5 + 7 * i % 40)
        if history.find(name) is None:
            ingest.add_document(name, tokens)
            history.add(name, tokens)
        else:
            ingest.replace_document(name, tokens)
            history.replace(name, tokens)
        tree.commit()
    return tree, history


class Failure(Exception):
    """What a fault looks like from inside."""


@contextlib.contextmanager
def failing_at(step: int):
    """Storage that fails at one of its steps, before or after it has been made."""
    steps, after = itertools.count(), step % 2

    def failing(function):
        def made(*arguments):
            fails = next(steps) == step // 2
            if fails and not after:
                raise Failure
            done = function(*arguments)
            if fails:
                raise Failure
            return done

        return made

    with contextlib.ExitStack() as stack:
        for owner, name in ((Arrays, "write"), (HeadRecord, "replace"), (compaction, "explained")):
            changed = mock.patch.object(owner, name, failing(getattr(owner, name)))
            stack.enter_context(changed)
        yield


def test_what_a_killed_writer_left_of_a_longer_head_does_not_count(tmp_path):
    """Its temporary file stays, and TensorStore's next write does not cut it."""
    tree, history = worn(tmp_path)
    (tmp_path / "HEAD.__lock").write_bytes(b"x" * 100_000)
    writer(tree).replace_document("a", tokens_of(1, 3))
    history.replace("a", tokens_of(1, 3))
    tree.commit()
    history.check(Tree.open(tmp_path))


# -- one writer that fails ---------------------------------------------------------------------


@pytest.mark.parametrize("inline", [64, 0])
def test_a_replacement_interrupted_at_any_step_is_not_seen_or_seen_whole(inline, monkeypatch):
    monkeypatch.setattr(heads, "INLINE", inline)
    for step in itertools.count():
        tree, old = worn(f"memory://interrupted-{next(numbers)}")
        new = old.copy()
        writer(tree).replace_document("b", tokens_of(77, 5 * WINDOW))
        new.replace("b", tokens_of(77, 5 * WINDOW))
        try:
            with failing_at(step):
                tree.commit()
        except Failure:
            seen = Tree.open(tree.uri)
            (new if len(seen.documents["b"]) and seen.documents["b"].version == 4 else old).check(
                seen
            )
            tree.commit()  # it may be tried again
            new.check(Tree.open(tree.uri))
        else:
            break
    new.check(Tree.open(tree.uri))
    assert step > 8


def test_a_compaction_interrupted_at_any_step_leaves_a_tree_and_can_be_run_again():
    for step in itertools.count():
        tree, history = worn(f"memory://interrupted-{next(numbers)}")
        reader = Tree.open(tree.uri)
        try:
            with failing_at(step):
                compact(tree, grace=0)
        except Failure:
            history.check(Tree.open(tree.uri))
            history.check(reader)
            tree = Tree.open(tree.uri, mode="w")
            compact(tree, grace=0)
        else:
            break
        history.check(Tree.open(tree.uri))
        history.check(reader)
        used = compaction.usage(tree)
        assert all(rows == size for rows, size in used.values())
        keys = tree.kvstore.list().result()
        folders = {int(key[6:14]) for key in keys if key != b"HEAD"}
        assert set(used) <= folders <= {*used, tree.epoch}
    assert step > 12


def test_a_full_disk_loses_nothing_and_the_commit_can_be_tried_again(tmp_path):
    tree, history = worn(tmp_path)
    tokens = tokens_of(5, 900)
    writer(tree).replace_document("a", tokens)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(TreeError, match="cannot be written"):
            tree.commit()
        history.check(Tree.open(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tree.commit()
    history.replace("a", tokens)
    history.check(Tree.open(tmp_path))


def test_a_folder_that_may_only_be_read_is_read():
    with tempfile.TemporaryDirectory() as folder:
        tree, history = worn(folder)
        tree.close()
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        root = os.geteuid() == 0
        try:
            os.seteuid(65534 if root else os.geteuid())  # root may write anywhere
            history.check(Tree.open(folder))
            with pytest.raises(TreeError, match="cannot be written"):
                Tree.open(folder, mode="w")
        finally:
            os.seteuid(0 if root else os.geteuid())
            for path in (Path(folder), *Path(folder).rglob("*")):
                path.chmod(0o755)


def test_a_newer_format_and_a_damaged_or_lost_index_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "INLINE", 0)
    worn(tmp_path)[0].close()
    (index,) = tmp_path.glob("epoch-*/index-*")
    intact = index.read_bytes()
    for place in (0, len(intact) // 2, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[place] ^= 4
        index.write_bytes(damaged)
        with pytest.raises(TreeError, match="index-.* is damaged"):
            Tree.open(tmp_path)
    index.unlink()
    with pytest.raises(TreeError, match="index-.* is missing"):
        Tree.open(tmp_path)
    index.write_bytes(intact)
    with Tree.open(tmp_path, mode="w"), monkeypatch.context() as later:
        later.setattr(heads, "FORMAT", heads.FORMAT + 1)
        Tree.open(tmp_path, mode="w")
    with pytest.raises(TreeError, match="update MegaContext"):
        Tree.open(tmp_path)


# -- writers against each other ----------------------------------------------------------------

STEPS = 2 + 4 + 1  # to open: read, replace; to commit: four writes, replace


@pytest.mark.parametrize("first", range(STEPS + 1))
def test_two_who_replace_the_same_document_end_with_one_whole_version(first):
    for second in range(STEPS + 1):
        uri = f"memory://rivals-{next(numbers)}"
        with Tree.create(uri, SPEC) as tree:
            writer(tree).add_document("a", tokens_of(0, 30))
        kept, refused = [], []

        def rival(seed, uri=uri, kept=kept, refused=refused):
            try:
                tree = Tree.open(uri, mode="w")
                writer(tree).replace_document("a", tokens_of(seed, 30))
                tree.commit()
                kept.append(seed)
            except TreeError as error:
                refused.append(str(error))

        Turns([0] * (first + 1) + [1] * (second + 1)).run(lambda: rival(1), lambda: rival(2))
        assert kept and len(kept) + len(refused) == 2
        assert all("nother writer" in sentence for sentence in refused)
        history = History()
        history.add("a", tokens_of(0, 30))
        for seed in kept:
            history.replace("a", tokens_of(seed, 30))
        history.check(Tree.open(uri))


@pytest.mark.parametrize("first", range(STEPS + 1))
def test_one_who_appends_and_one_who_compacts_leave_one_whole_tree(first):
    """Whoever is refused has lost nothing but its own; folders that are deleted are nobody's."""
    for second in range(0, 12, 3):
        tree, history = worn(f"memory://rivals-{next(numbers)}")
        kept, refused = [], []

        def appends(uri=tree.uri, kept=kept, refused=refused):
            try:
                ingest = writer(Tree.open(uri, mode="w"))
                ingest.add_document("new", tokens_of(50, 30))
                ingest.tree.commit()
                kept.append("new")
            except TreeError as error:
                refused.append(str(error))

        def compacts(uri=tree.uri, refused=refused):
            try:
                compact(Tree.open(uri, mode="w"), grace=0)
            except TreeError as error:
                refused.append(str(error))

        Turns([0] * first + [1] * (second + 1)).run(appends, compacts)
        assert all("nother writer" in sentence for sentence in refused) and len(refused) < 2
        if kept:
            history.add("new", tokens_of(50, 30))
        history.check(Tree.open(tree.uri))
        assert verify(tree.uri).problems == []


# -- readers -----------------------------------------------------------------------------------


def test_readers_go_on_while_the_tree_is_compacted_beneath_them(tmp_path):
    tree, history = worn(tmp_path)
    readers = [Tree.open(tmp_path) for _ in range(2)]
    done, failures = threading.Event(), []

    def read(reader):
        try:
            while not done.is_set():
                history.check(reader)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            compact(tree, least=-1.0, grace=0)  # even what holds no waste
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_reader_of_what_was_replaced_and_compacted_away_is_told_to_refresh(tmp_path):
    tree, history = worn(tmp_path)
    late, kept = Tree.open(tmp_path), Tree.open(tmp_path)
    old = history.copy()
    writer(tree).replace_document("c", tokens_of(31, 9))
    history.replace("c", tokens_of(31, 9))
    tree.commit()
    first = compact(tree, grace=3600)
    assert first.copied and not first.deleted and first.retired
    old.check(kept)  # within the grace period, not even that is noticed
    second = compact(tree, grace=0)
    assert set(second.deleted) == set(first.retired) and not second.retired
    with pytest.raises(TreeError, match="refresh"):
        late.tokens(0, late.length)
    assert late.refresh()
    history.check(late)
    assert compact(tree, grace=0).copied == 0


def test_killed_at_any_moment_documents_are_of_one_generation(tmp_path):
    """A process replaces and compacts until it is killed, again and again; a reader follows."""
    rng, seen = random.Random(1), 0
    Tree.create(tmp_path, SPEC).close()
    reader = Tree.open(tmp_path)
    command = [sys.executable, "-m", "tests.tree.codebase", str(tmp_path)]
    for _ in range(2):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        end = time.monotonic() + rng.uniform(0.2, 0.6)
        while time.monotonic() < end:
            reader.refresh()
            with contextlib.suppress(TreeError) if seen else contextlib.nullcontext():
                checked(reader)
                seen += 1
        process.kill()
        process.communicate()
        reader.refresh()
        checked(reader)
        checked(Tree.open(tmp_path))
    assert seen > 3 and reader.documents["1"].version > 3
    with Tree.open(tmp_path, mode="w") as tree:
        compact(tree, grace=0)
    checked(Tree.open(tmp_path))
    assert len(list(tmp_path.glob("epoch-*/*"))) > 0
    np.testing.assert_equal(len(reader.documents), 3)
