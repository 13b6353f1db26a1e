"""What the lens looks at stands on the device: a look brings what it lacks, and changes nothing."""

import dataclasses

import numpy as np
import pytest

from mctx.runtime.shelf import Shelf
from mctx.tree.head import StoreError
from tests.runtime.small import BLOCK, CONFIG, session, text, worths

TEXT = text(40 * BLOCK, 3)


@pytest.fixture(scope="module")
def tree():
    made = session(worths=worths(0))
    made.ingest(TEXT)
    return made.tree


def nodes(*of):
    level, index = np.array(of).T
    return level[None], index[None]


def test_gists_stand_where_it_says_and_only_those_that_lack_are_read(tree, monkeypatch):
    shelf, read, plain = Shelf(tree, 4), [], type(tree).gather

    def heard(self, level, index):
        read.extend((level, int(one)) for one in index)
        return plain(self, level, index)

    monkeypatch.setattr(type(tree), "gather", heard)
    looks = [
        [(0, 3), (1, 5), (2, 2)],
        [(1, 3), (1, 5), (2, 1), (0, -1)],
        [(1, 6), (1, 7), (1, 8), (3, 99)],  # the last is not there yet
        [(1, 9), (1, 10), (1, 11), (1, 12)],
        [(0, 3), (2, 2)],
    ]
    new = [[(1, 3), (1, 5), (2, 2)], [(2, 1)], [(1, 6), (1, 7), (1, 8)]]
    new += [[(1, 9), (1, 10), (1, 11), (1, 12)], [(1, 3), (2, 2)]]  # these were pushed out
    for look, lacking in zip(looks, new, strict=True):
        read.clear()
        places = shelf.places(*nodes(*look))[0]
        assert sorted(read) == sorted(lacking)
        for (level, index), place in zip(look, places, strict=True):
            there = 0 <= index < tree.count(max(level, 1))
            want = plain(tree, max(level, 1), np.array([index])).ravel() if there else 0.0
            np.testing.assert_array_equal(np.asarray(shelf.table)[place], want)


def test_a_read_that_fails_leaves_it_as_it_was(tree, monkeypatch):
    shelf, plain = Shelf(tree, 4), type(tree).gather

    def fail(self, level, index):
        raise StoreError("gone")

    monkeypatch.setattr(type(tree), "gather", fail)
    with pytest.raises(StoreError):
        shelf.places(*nodes((1, 3), (2, 2)))
    monkeypatch.setattr(type(tree), "gather", plain)
    place = shelf.places(*nodes((1, 3)))[0, 0]
    np.testing.assert_array_equal(
        np.asarray(shelf.table)[place], tree.gather(1, np.array([3])).ravel()
    )


def test_layouts_that_differ_in_tokens_alone_are_looked_at_once(monkeypatch):
    made = session(dataclasses.replace(CONFIG, heads=2, top=2, budget=2 * CONFIG.budget))
    made.ingest(TEXT)
    heads, before = np.arange(2), made.layouts
    far = (before.level <= 1) & (before.index >= CONFIG.sink)
    far &= (0 <= before.index) & (before.index < made.blocks - CONFIG.recent)
    level = np.where(far, 1 - before.level, before.level)
    assert far.any()
    made.lens(made.focus, before, heads)
    shared = made.lens(made.focus, before._replace(level=level), heads)
    looked = made.looks.copy()
    made.looks.clear()
    made.shelves.clear()
    alone = made.lens(made.focus, before._replace(level=level), heads)
    (_, old), (_, new) = looked.popitem()[1], made.looks.popitem()[1]
    assert old is not new
    for a, b in zip(shared, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
