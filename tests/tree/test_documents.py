"""Documents: whatever is added, replaced and deleted, the tree is what a list of them says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.tree import head as heads
from mctx.tree.checks import MAX_BLOCKS
from mctx.tree.compact import compact
from mctx.tree.documents import Documents, Span, last_live, live_within, windows_of
from mctx.tree.extents import Extent, Extents, pieces, spliced
from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree
from tests.tree.codebase import BLOCK, PAD, SPEC, WINDOW, History, Reader, tokens_of

numbers = itertools.count()
names = st.sampled_from("abcd")
lengths = st.integers(1, 3 * WINDOW)
operations = st.one_of(
    st.tuples(st.just("put"), names, lengths),
    st.tuples(st.just("put"), names, lengths),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("text"), st.integers(0, 3 * WINDOW)),
    st.tuples(st.sampled_from(["commit", "in background", "reopen", "compact"])),
)


def place() -> str:
    return f"memory://documents-{next(numbers)}"


def writer(tree) -> Ingest:
    return Ingest(Reader(), tree, pad=PAD)


@pytest.mark.parametrize("inline", [64, 0])
@settings(max_examples=25)
@given(st.lists(operations, max_size=14))
def test_a_tree_is_what_the_list_of_its_documents_says(inline, steps):
    """Also through HEADs that name an index; a follower sees what is committed, or what was."""
    uri, kept = place(), heads.INLINE
    heads.INLINE = inline
    try:
        run(uri, steps)
    finally:
        heads.INLINE = kept


def run(uri, steps):
    tree, follower = Tree.create(uri, SPEC), Tree.open(uri)
    ingest, now, committed = writer(tree), History(), History()
    for seed, (step, *arguments) in enumerate(steps):
        if step == "put":
            name, tokens = arguments[0], tokens_of(seed, arguments[1])
            if now.find(name) is None:
                ingest.add_document(name, tokens)
                now.add(name, tokens)
            else:
                ingest.replace_document(name, tokens)
                now.replace(name, tokens)
        elif step == "delete":
            if now.find(arguments[0]) is not None:
                ingest.delete_document(arguments[0])
                now.delete(arguments[0])
        elif step == "text":
            tokens = tokens_of(seed, arguments[0])
            for _ in ingest.feed(tokens):
                pass
            if len(tokens):
                now.write(tokens)
        elif step == "reopen":
            tree.close()
            tree = Tree.open(uri, mode="w")
            ingest, now = writer(tree), committed.copy()
        else:
            tree.commit(wait=step != "in background")
            if step == "compact":
                compact(tree, grace=0)
            committed = now.copy()
            if step == "in background":  # and more comes while it is at work
                list(ingest.feed(tokens_of(seed, BLOCK + 1)))
                now.write(tokens_of(seed, BLOCK + 1))
        now.check(tree)
        tree.settle()
        follower.refresh()
        committed.check(follower)
        committed.check(Tree.open(uri))


# -- what an edit costs, and what it leaves alone ----------------------------------------------


def codebase(files=40, length=5 * WINDOW + 3):
    tree = Tree.create(place(), SPEC)
    ingest = writer(tree)
    for i in range(files):
        ingest.add_document(f"{i}.py", tokens_of(i, length))
    tree.commit()
    return tree, ingest


def test_an_edit_reads_the_windows_it_changed_and_the_nodes_above_them():
    tree, ingest = codebase()
    reader, text = ingest.reader, tokens_of(7, 5 * WINDOW + 3)
    text[2 * WINDOW] += 1
    reader.windows = reader.pooled = 0
    ingest.replace_document("7.py", text)
    assert (reader.windows, reader.pooled) == (1, 2)  # its window; one node of each level above
    ingest.replace_document("7.py", tokens_of(99, 5 * WINDOW))
    assert reader.windows <= 1 + 5


def test_what_was_not_replaced_keeps_its_address():
    tree, ingest = codebase()
    every = np.arange(tree.blocks)
    before = tree.addresses(1, every)
    span = ingest.replace_document("7.py", tokens_of(99, 5 * WINDOW + 3))
    changed = np.any(tree.addresses(1, every) != before, axis=1)
    assert set(np.flatnonzero(changed)) <= set(range(span.start // BLOCK, span.stop // BLOCK))
    held = tree.addresses(1, every)
    tree.commit()
    np.testing.assert_array_equal(tree.addresses(1, every), held)


def test_a_reader_with_warm_copies_sees_the_replacement_once_it_is_committed():
    tree, ingest = codebase(4)
    reader = Tree.open(tree.uri)
    old = {level: reader.gather(level, np.arange(reader.count(level))) for level in (1, 2, 3)}
    ingest.replace_document("1.py", tokens_of(50, 2 * WINDOW))
    assert not reader.refresh()
    for level in old:
        np.testing.assert_array_equal(reader.gather(level, np.arange(len(old[level]))), old[level])
    tree.commit()
    assert reader.refresh() and not reader.refresh()
    fresh = Tree.open(tree.uri)
    for level in old:
        now = reader.gather(level, np.arange(reader.count(level)))
        np.testing.assert_array_equal(now, fresh.gather(level, np.arange(fresh.count(level))))
        assert not np.array_equal(now[: len(old[level])], old[level])


def test_head_stays_small_and_its_commits_flat_with_many_documents(tmp_path):
    tree = Tree.create(tmp_path, SPEC)
    ingest = writer(tree)
    for i in range(150):
        ingest.add_document(f"{i}.py", tokens_of(i, WINDOW + 3))
    tree.commit()
    for i in range(0, 150, 2):
        ingest.replace_document(f"{i}.py", tokens_of(i + 1000, WINDOW + 3))
    tree.commit()
    sizes = []
    for i in range(12):
        assert not list(ingest.feed(tokens_of(i, BLOCK)))[1:]
        tree.commit()
        sizes.append((tmp_path / "HEAD").stat().st_size)
    assert max(sizes) < 2000 and sizes[-1] - sizes[1] < 40
    assert len(list(tmp_path.glob("epoch-*/index-*"))) == 1
    assert len(Tree.open(tmp_path).documents) == 150
    found = Tree.open(tmp_path).tokens(0, tree.length)
    np.testing.assert_array_equal(found, tree.tokens(0, tree.length))


# -- what a person can get wrong ---------------------------------------------------------------


def test_names_and_texts_that_mean_nothing_are_refused_and_change_nothing():
    tree, ingest = codebase(2)
    for act, words in [
        (lambda: ingest.add_document("0.py", tokens_of(0, 3)), "replace the one"),
        (lambda: ingest.add_document("", tokens_of(0, 3)), "text that UTF-8 can spell"),
        (lambda: ingest.add_document("new", tokens_of(0, 0)), "empty"),
        (lambda: ingest.add_document(5, tokens_of(0, 3)), "text that UTF-8 can spell, not 5;"),
        (lambda: ingest.add_document("\ud800", tokens_of(0, 3)), "text that UTF-8 can spell"),
        (lambda: ingest.replace_document("new", tokens_of(0, 3)), "those there are: '0.py', '1.py"),
        (lambda: ingest.delete_document("new"), "those there are: '0.py', '1.py'"),
        (lambda: ingest.add_document("new", np.full(3, 1000)), "vocabulary"),
    ]:
        with pytest.raises(UserError, match=words):
            act()
        assert not tree.staged and list(tree.documents) == ["0.py", "1.py"]


def test_where_a_document_is_asked_for_a_few_others_are_named():
    with pytest.raises(UserError, match=r"'new' here; .*: '0.py', '1.py', '2.py', …\.$"):
        codebase(4, 3)[1].delete_document("new")
    with pytest.raises(UserError, match="it has none: add one"):
        codebase(0)[1].delete_document("new")


def test_a_document_past_the_last_index_is_a_clear_error():
    uri, length = place(), (MAX_BLOCKS - 1) * BLOCK
    counts = [length, *(length // SPEC.span(level) for level in (1, 2, 3))]
    spans = Documents([Span("", 0, 0, length, 0)])
    full = heads.Head(SPEC, 1, "", [[Extent(0, 0, 0, n)] for n in counts], spans)
    heads.HeadRecord(Tree.create(uri, SPEC).kvstore, uri)._kvstore.write(
        "HEAD", heads.encode(full)
    ).result()
    tree = Tree.open(uri, mode="w")
    ingest = writer(tree)
    with pytest.raises(UserError, match=r"2\*\*31 blocks"):
        ingest.add_document("last", tokens_of(0, WINDOW))
    assert [len(blocks.k) for blocks in ingest.feed(tokens_of(1, BLOCK))] == [1]
    tree.commit()
    assert Tree.open(uri).blocks == MAX_BLOCKS
    last = Tree.open(uri).tokens(length, length + BLOCK)
    np.testing.assert_array_equal(last, tokens_of(1, BLOCK))
    with pytest.raises(UserError, match=r"2\*\*31 blocks"):
        list(ingest.feed(tokens_of(1, BLOCK)))


# -- arithmetic --------------------------------------------------------------------------------

places = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 6))


@given(st.lists(st.tuples(st.integers(0, 30), places), max_size=12))
def test_splices_agree_with_one_address_per_row(edits):
    extents, rows = Extents(), []
    for start, (epoch, row, length) in edits:
        start = min(start, len(rows))
        extents = spliced(extents, start, epoch, row if epoch else 0, length)
        rows[start : start + length] = [(epoch, epoch and row + i) for i in range(length)]
        found = [(e.epoch, e.epoch and e.row + i) for e in extents for i in range(e.length)]
        assert found == rows
        assert all(a.stop == b.start for a, b in itertools.pairwise(extents))
        some = pieces(extents, 2, len(rows))
        assert sum(part.length for part in some) == max(len(rows) - 2, 0)


@given(st.lists(st.booleans(), max_size=40), st.data())
def test_runs_of_dead_blocks_count_like_a_list(dead, data):
    spans = [Span("" if d else "x", 0, i * 2, i * 2 + 2, 0 if d else 2) for i, d in enumerate(dead)]
    runs = Documents(spans).dead(2)
    start = data.draw(st.integers(0, len(dead)))
    stop = data.draw(st.integers(start, len(dead)))
    assert live_within(runs, np.int64(start), np.int64(stop)) == dead[start:stop].count(False)
    live = [i for i, d in enumerate(dead[:stop]) if not d]
    for count in (1, 3, 50):
        assert last_live(runs, stop, count).tolist() == live[-count:]


@given(st.sets(st.integers(1, 60), max_size=6), st.integers(0, 60), st.integers(1, 9))
def test_windows_never_cross_a_border(edges, position, window):
    borders = np.array(sorted({0} | edges))
    start, stop = (int(x[0]) for x in windows_of(borders, np.array([position]), window))
    assert start <= position < stop <= start + window
    assert not any(start < edge < stop for edge in borders)
    origin = borders[borders <= start].max()
    assert (start - origin) % window == 0
