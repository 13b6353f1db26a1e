"""`verify` finds what is wrong with a tree, names it, and finds nothing wrong with a sound one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mctx.tree import head as heads
from mctx.tree.arrays import open_kvstore, row_shape, to_bits
from mctx.tree.compact import compact
from mctx.tree.documents import Documents, Span
from mctx.tree.head import HeadRecord, TreeError
from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests.tree import codebase, history
from tests.tree.history import SPEC

LENGTH = 40_000  # tokens: 160 kB, five chunks


@pytest.fixture
def folder(tmp_path) -> Path:
    with Tree.create(tmp_path, SPEC) as tree:
        history.append(tree, LENGTH - 7)
    with Tree.open(tmp_path, mode="w") as tree:
        history.append(tree, 7)
    return tmp_path


def test_a_sound_tree_has_no_problems(folder):
    told = []
    report = verify(folder, progress=lambda done, total: told.append((done, total)))
    tree = Tree.open(folder)
    assert report.problems == report.orphans == report.foreign == [] and not report.missing
    assert report.counts == [LENGTH, *(tree.count(level) for level in (1, 2, 3))]
    assert report.bytes == sum(tree.stats()["bytes"].values())
    assert told[-1] == (report.bytes, report.bytes)


def test_an_empty_tree_is_sound(tmp_path):
    Tree.create(tmp_path, SPEC).close()
    assert verify(tmp_path).problems == []
    with pytest.raises(TreeError, match="no MegaContext tree"):
        verify(tmp_path / "elsewhere")


@pytest.mark.parametrize("array, first, last", [("tokens", 8192, 16383), ("lod1", 1024, 2047)])
def test_a_flipped_bit_is_named_by_its_chunk(folder, array, first, last):
    """Halving meets the chunk's borders only by luck: the range is twice a chunk at most."""
    path = next(folder.glob(f"epoch-00000001/{array}/c.*"))
    damaged = bytearray(path.read_bytes())
    damaged[32_768 + 400] ^= 1  # in the second chunk: the first lies before it
    path.write_bytes(damaged)
    (problem,) = verify(folder).problems
    level, low, high = (int(n) for n in re.findall(r"\d+", problem)[:3])
    assert level == (0 if array == "tokens" else int(array[3:]))
    assert low <= first and high >= last and high - low <= 2 * (last - first) + 2
    assert "cannot be read" in problem


def test_a_missing_file_is_named(folder):
    next(folder.glob("epoch-00000001/lod3/c.*")).unlink()
    (problem,) = verify(folder).problems
    assert problem.startswith("Level 3, rows 0 to 1665 cannot be read")


def test_a_lost_array_is_named(folder):
    for path in (folder / "epoch-00000001" / "lod2").iterdir():
        path.unlink()
    assert "lod2" in verify(folder).problems[0]


def test_other_models_are_a_problem(folder):
    assert verify(folder, "models").problems == []
    assert "not by 'others'" in verify(folder, "others").problems[0]


def test_leftovers_and_strangers_are_told_apart(folder):
    Tree.open(folder, mode="w").close()  # an epoch in which nothing was written
    writer = Tree.open(folder, mode="w")
    with Tree.open(folder, mode="w") as winner:
        history.append(writer, 40)
        with pytest.raises(TreeError, match="taken over"):
            writer.commit()
        history.append(winner, 4)
    (folder / "notes.txt").write_text("mine")
    report = verify(folder)
    assert report.orphans == [4] and report.foreign == ["notes.txt"] and not report.problems


def published(folder: Path, change) -> list[str]:
    """Problems once HEAD says something else."""
    head, _ = HeadRecord(open_kvstore(folder), str(folder)).read()
    open_kvstore(folder).write("HEAD", heads.encode(change(head))).result()
    return verify(folder).problems


def table(head, level, row, column, value):
    """HEAD with one number of an extent changed."""
    tables = [each.table.copy() for each in head.extents]
    tables[level][row, column] = value
    return replace(head, extents=tuple(tables))


WRONG = {
    "gap": (lambda h: table(h, 0, 1, 0, LENGTH), "level 0 in HEAD have a gap"),
    "later epoch": (lambda h: table(h, 1, 0, 1, 9), "level 1 that an epoch after 2"),
    "twice": (lambda h: table(h, 0, 1, 1, 1), "stored row of level 0 twice"),
    "too many": (lambda h: table(h, 3, -1, 3, 10**6), "gists of level 3, and the"),
    "dead": (lambda h: table(h, 1, -1, 1, 0), "dead rows of level 1"),
    "beyond": (lambda h: table(h, 2, -1, 2, 10**9), "Level 2, rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_head_that_contradicts_itself_is_a_problem(folder, case):
    change, says = WRONG[case]
    assert any(says in problem for problem in published(folder, change))


@pytest.mark.parametrize("name", [5, "\ud800"])
def test_a_name_that_is_no_text_is_a_problem(folder, name):
    head, _ = HeadRecord(open_kvstore(folder), str(folder)).read()
    end = head.count(0)
    span = Span(name, 1, end - SPEC.fanouts[0], end, SPEC.fanouts[0])
    problems = published(folder, lambda h: replace(h, documents=Documents([span])))
    assert any("a name that is no text" in problem for problem in problems)


def test_damage_is_named_between_rows_that_are_dead(tmp_path):
    """Compacted, what is alive lies in one chunk: halved, a part of the rows lies past the cut."""
    with Tree.create(tmp_path, codebase.SPEC) as tree:
        ingest = Ingest(codebase.Reader(), tree, pad=codebase.PAD)
        for number in range(40):
            length = (1 + number % 5) * codebase.WINDOW * 60
            ingest.add_document(f"{number}", codebase.tokens_of(number, length))
        for number in range(0, 40, 3):
            ingest.delete_document(f"{number}")
        tree.commit()
    with Tree.open(tmp_path, mode="w") as tree:
        compact(tree, grace=0)
    assert verify(tmp_path).problems == []
    (path,) = tmp_path.glob("*/lod1/c.*")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3 : len(damaged) // 3 + 4] = b"\0\1\2\3"
    path.write_bytes(damaged)
    problems = verify(tmp_path).problems
    assert problems and all("cannot be read" in problem for problem in problems)
    assert all(problem.startswith("Level 1, rows") for problem in problems)


@pytest.mark.parametrize("level, value, says", [(0, 1000, "vocabulary"), (1, 0x7FC0, "NaN")])
def test_values_that_cannot_be_are_problems(folder, level, value, says):
    tree = Tree.open(folder, mode="w")
    rows = np.full((5, *row_shape(SPEC, level)), value)
    row = tree.store(level, rows.astype(np.uint16 if level else np.int32))
    tree.place(level, 100, tree.epoch, row, 5)
    tree.commit()
    (problem,) = verify(folder).problems
    assert says in problem and "100 to 104" in problem


def test_an_epoch_that_holds_only_the_index_is_no_orphan(tmp_path):
    """The second writer stores no row: every other one lies in a copy that the first has left."""
    with Tree.create(tmp_path, SPEC) as tree:
        row = tree.store(1, to_bits(history.gists(1, 0, 400)))
        history.append(tree, 4 * 400)
    with Tree.open(tmp_path, mode="w") as tree:
        for index in range(0, 400, 2):
            tree.place(1, index, 1, row + index, 1)
    Tree.open(tmp_path, mode="w").close()
    assert [path.parent.name for path in tmp_path.glob("*/index-*")] == ["epoch-00000002"]
    report = verify(tmp_path)
    assert report.epoch == 3 and not report.problems and not report.orphans
