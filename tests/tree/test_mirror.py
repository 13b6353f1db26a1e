"""The mirror gives what is stored, whatever its size, whoever asks, and however rows came to it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.tree.arrays import Arrays, open_kvstore, row_shape, to_bits
from mctx.tree.extents import DEAD, Extent, Extents
from mctx.tree.head import TreeError, TreeSpec
from mctx.tree.mirror import Mirror, MirrorConfig, _cut, _pages_of, _Piece
from mctx.tree.pages import Bits, Pages
from mctx.tree.store import Tree
from tests.tree import history
from tests.tree.history import SPEC

PAGE = 128  # rows of SPEC in 4 KiB
ROWS = 10 * PAGE + 40
names = iter(range(10**6))


@pytest.fixture(scope="module")
def uri() -> str:
    with Tree.create("memory://mirror", SPEC) as tree:
        history.append(tree, ROWS * SPEC.fanouts[0])
    return "memory://mirror"


def limited(pages: int, **config) -> MirrorConfig:
    """Room for so many pages of SPEC's gists."""
    return MirrorConfig(limit=pages * PAGE * 32, load=False, **config)


def counted(tree: Tree, monkeypatch) -> list:
    asked, read = [], tree._arrays.read_pages
    monkeypatch.setattr(
        tree._arrays, "read_pages", lambda *a: asked.append(a[2].tolist()) or read(*a)
    )
    return asked


@settings(max_examples=30)
@given(st.integers(1, 14), st.lists(st.lists(st.integers(0, ROWS - 1), max_size=40), max_size=12))
def test_a_mirror_of_any_size_gives_what_is_stored(uri, pages, requests):
    tree, stored = Tree.open(uri, mirror=limited(pages)), history.gists(1, 0, ROWS)
    for indices in requests:
        np.testing.assert_array_equal(tree.gather(1, np.array(indices, int)), stored[indices])
        assert tree._mirror.nbytes <= pages * PAGE * 32


def test_the_pages_that_were_asked_for_longest_ago_leave(uri, monkeypatch):
    tree = Tree.open(uri, mirror=limited(4))
    asked = counted(tree, monkeypatch)
    for page in (0, 1, 2, 3, 0, 4, 0, 1):
        tree.gather(1, np.array([page * PAGE]))
    assert asked == [[0], [1], [2], [3], [4], [1]]


def test_more_than_fits_is_given_whole(uri):
    tree = Tree.open(uri, mirror=limited(2))
    for _ in range(2):
        every = tree.gather(1, np.arange(ROWS))
        np.testing.assert_array_equal(every, history.gists(1, 0, ROWS))
    assert tree._mirror.nbytes == 2 * PAGE * 32


def test_int8_is_off_by_at_most_a_254th_of_the_largest_value():
    spec = TreeSpec(fanouts=(2,), slots=2, gist_width=48, fingerprint="", vocab_size=2)
    rng = np.random.default_rng(0)
    gists = rng.normal(size=(500, 2, 48)) * 10.0 ** rng.integers(-20, 20, (500, 1, 1))
    gists[7] = 0
    with Tree.create(f"memory://int8-{next(names)}", spec) as tree:
        tree.append(np.zeros(1000, np.int32), {1: gists})
    exact = tree.gather(1, np.arange(500))
    eighths = Tree.open(tree.uri, mirror=MirrorConfig(int8=True, load=False))
    first = eighths.gather(1, np.arange(500))
    bound = np.abs(exact).max(axis=(1, 2), keepdims=True) / 254
    assert (np.abs(first - exact) <= bound * 1.001).all() and (first != exact).any()
    np.testing.assert_array_equal(eighths.gather(1, np.arange(500)), first)  # from memory, too
    assert eighths._mirror.nbytes < 0.56 * 500 * 2 * 48 * 2 * 512 / 500


def test_what_a_writer_commits_needs_no_read(monkeypatch):
    tree = Tree.create(f"memory://own-{next(names)}", SPEC)
    asked = counted(tree, monkeypatch)
    for count in [20, 500, 1, 700, 3, 3000, 13] * 3:
        history.append(tree, count)
        tree.commit()
        history.check(tree)
    assert not asked


def test_a_page_that_grew_is_read_again(monkeypatch):
    writer = Tree.create(f"memory://grows-{next(names)}", SPEC)
    history.append(writer, 40)
    writer.commit()
    reader = Tree.open(writer.uri)
    asked = counted(reader, monkeypatch)
    for _ in range(3):
        history.check(reader)
        history.append(writer, 40)
        writer.commit()
        history.check(reader)  # what it had is still what it had
        reader.refresh()
    history.check(reader)
    assert len(asked) == sum(1 for _ in range(4) for _ in range(SPEC.levels))


def test_an_older_state_does_not_shorten_a_page():
    pages = Pages(Bits(1), 4, 2**20)
    newer = np.arange(4, dtype=np.uint16).reshape(1, 4, 1)
    pages.put(1, 1, np.array([0]), newer, end=4)
    pages.put(1, 1, np.array([0]), np.full((1, 4, 1), 9, np.uint16), end=2)
    places = pages.find(1, 1, np.arange(4))
    np.testing.assert_array_equal(to_bits(pages.take(places)), newer[0])


def test_pages_that_are_read_in_place_survive_a_move_and_another_who_was_faster():
    pages = Pages(Bits(1), 2, 2**20)
    pages.reserve(4)
    slots = pages.claim(3)
    memory = pages.claimed(slots)
    memory[:, 0] = [20, 21, 30, 31, 40, 41]
    assert len(pages) == 0 and (pages.find(1, 1, np.arange(4, 10)) == -1).all()
    pages.put(1, 1, np.array([3]), np.array([[[7], [8]]], np.uint16), end=8)
    pages.reserve(100)  # all moves to larger memory
    memory[-1] = 42
    pages.fill(1, 1, np.array([2, 3, 4]), slots, memory, end=10)
    found = to_bits(pages.take(pages.find(1, 1, np.arange(4, 10))))
    assert found.ravel().tolist() == [20, 21, 7, 8, 40, 42] and len(pages) == 3
    again = pages.claim(5)
    pages.abandon(again)
    pages.put(1, 1, np.arange(5, 90), np.zeros((85, 2, 1), np.uint16), end=180)
    assert len(pages) == 88 and (pages.find(1, 1, np.arange(4, 180)) != -1).all()


def test_prefetched_gists_need_no_read(uri, monkeypatch):
    tree = Tree.open(uri, mirror=MirrorConfig(load=False))
    tree.prefetch(1, np.array([3, 5 * PAGE])).result()
    asked = counted(tree, monkeypatch)
    tree.gather(1, np.array([5 * PAGE + 7, 0]))
    assert not asked
    tree.close()
    assert tree.prefetch(1, np.array([9 * PAGE])) is None


@pytest.mark.parametrize("pages, levels", [(100, (1, 2, 3)), (9, (2, 3)), (1, ())])
def test_the_background_loads_the_coarse_levels_that_fit(uri, monkeypatch, pages, levels):
    monkeypatch.setattr("mctx.tree.mirror.WORTH_LOADING", 1)
    monkeypatch.setattr("mctx.tree.mirror.LOAD_BYTES", 2 * PAGE * 32)
    tree = Tree.open(uri, mirror=MirrorConfig(limit=pages * PAGE * 32))
    if levels:
        assert tree._mirror.loaded.result(10) == tree._mirror.nbytes
    asked = counted(tree, monkeypatch)
    for level in (3, 2, 1):
        indices = np.arange(tree.count(level))
        found = tree.gather(level, indices)
        np.testing.assert_array_equal(found, history.gists(level, 0, len(indices)))
        assert bool(asked) == (level not in levels)


places = st.tuples(st.sampled_from([DEAD, 1, 2]), st.integers(0, 60), st.integers(1, 30))


@given(st.lists(places, max_size=8))
def test_what_is_loaded_is_every_page_with_a_stored_row_once(parts):
    extents = Extents(Extent(0, *part) for part in parts)
    rows = {e: {r for f, a, n in parts if f == e for r in range(a, a + n)} for e in (1, 2)}
    expected = [
        (epoch, sorted({row // 8 for row in here}), max(here) + 1)
        for epoch, here in rows.items()
        if here
    ]
    assert [(e, pages.tolist(), end) for e, pages, end in _pages_of(extents, 8)] == expected


@given(st.sets(st.integers(0, 150)), st.sampled_from([(16, 4), (64, 4), (64, 16), (256, 64)]))
def test_what_is_read_at_once_keeps_the_last_chunk_of_a_large_file_apart(numbers, sizes):
    """Pages of 4 rows, 8 of them at once: only files of 64 rows and more are larger than that."""
    file, chunk = sizes
    pieces = _cut(_Piece(1, 1, np.array(sorted(numbers), int), 10**6), 4, 8, file, chunk)
    assert [n for each in pieces for n in each.pages.tolist()] == sorted(numbers)
    for piece in pieces:
        assert len(piece.pages) <= 8 and piece.end == 10**6
        last = {int(n) * 4 % file >= file - chunk for n in piece.pages}
        assert len(last) <= 1 or file <= 32
    assert len(pieces) <= 1 + 151 // 8 + (2 * 151 * 4 // file if file > 32 else 0)


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A tree in files larger than a piece: of 256 rows, in chunks of 128, a page each."""
    for name, size in {"SHARD": 2**13, "CHUNK": 2**12}.items():
        monkeypatch.setattr(f"mctx.tree.arrays.BULK_{name}_BYTES", size)
    with Tree.create(tmp_path, SPEC, bulk=True) as tree:
        history.append(tree, ROWS * SPEC.fanouts[0])
    monkeypatch.setattr("mctx.tree.mirror.WORTH_LOADING", 1)
    monkeypatch.setattr("mctx.tree.mirror.LOAD_BYTES", PAGE * 32)
    return tmp_path


def test_large_files_are_loaded_in_pieces(large, monkeypatch):
    tree = Tree.open(large)
    tree._mirror.loaded.result(10)
    asked = counted(tree, monkeypatch)
    history.check(tree)
    assert not asked


@pytest.mark.parametrize("harm", ["a bit flipped", "lost"])
def test_what_is_read_straight_to_its_place_is_checked_too(large, harm):
    path = next(large.glob("*/lod1/c.1.*"))
    intact = path.read_bytes()
    path.unlink()
    if harm != "lost":
        path.write_bytes(intact[:100] + bytes([intact[100] ^ 1]) + intact[101:])
    tree = Tree.open(large)
    assert tree._mirror.loaded.exception(10)
    with pytest.raises(TreeError, match="Level 1, rows 2"):
        tree.gather(1, np.arange(200, 300))
    np.testing.assert_array_equal(tree.gather(1, np.arange(200)), history.gists(1, 0, 200))


def test_loading_leaves_damage_to_who_asks(uri, tmp_path, monkeypatch):
    monkeypatch.setattr("mctx.tree.mirror.WORTH_LOADING", 1)
    with Tree.create(tmp_path, SPEC) as tree:
        history.append(tree, 400)
    next(tmp_path.glob("*/lod2/c.*")).unlink()
    tree = Tree.open(tmp_path)
    assert tree._mirror.loaded.exception(10)
    np.testing.assert_array_equal(tree.gather(3, np.arange(3)), history.gists(3, 0, 3))
    with pytest.raises(TreeError, match="Level 2, rows 1 to 4"):
        tree.gather(2, np.array([4, 1]))


def test_levels_and_epochs_are_apart():
    kvstore = open_kvstore("memory://apart/")
    arrays = Arrays(kvstore, "memory://apart", SPEC)
    mirror = Mirror(arrays)
    for level, epoch in ((1, 1), (1, 2), (2, 1)):
        rows = np.full((2, *row_shape(SPEC, level)), 10 * level + epoch)
        arrays.write(level, epoch, 0, to_bits(rows))()
    for level, epochs in ((2, [1, 1]), (1, [2, 1]), (1, [1, 1])):
        where = np.array(epochs), np.array([0, 1]), np.array([7, 8])
        found = mirror.gather(level, *where, lambda _: 2)
        assert found[:, 0, 0].tolist() == [10 * level + epoch for epoch in epochs]


def test_blocks_of_tokens(uri):
    tree = Tree.open(uri, mode="w")
    history.append(tree, 9)  # not committed
    indices = np.array([[ROWS + 1, 0], [77, 77]]).ravel()
    expected = history.tokens(0, tree.length - 1).reshape(-1, SPEC.fanouts[0])[indices]
    np.testing.assert_array_equal(tree.token_blocks(indices), expected)
    assert tree.token_blocks(np.zeros(0, int)).shape == (0, 4)
    with pytest.raises(TreeError, match="Blocks 0 to"):
        tree.token_blocks(np.array([0, ROWS + 2]))
