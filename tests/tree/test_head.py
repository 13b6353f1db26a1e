"""Extent arithmetic against one address per row, for any list that a HEAD may hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mctx.tree.extents import Extent, count, extended, locate, pieces
from mctx.tree.head import Head, decode, encode
from tests.tree.history import SPEC


@st.composite
def extent_lists(draw):
    """Runs from any epoch and row, as appends, successions and replacements leave them."""
    extents, start = [], 0
    for _ in range(draw(st.integers(1, 6))):
        epoch, row, length = (draw(st.integers(low, 9)) for low in (1, 0, 1))
        extents.append(Extent(start, epoch, row, length))
        start += length
    return tuple(extents)


def addresses(extents) -> list[tuple[int, int]]:
    """(epoch, row) of every logical row."""
    return [(one.epoch, one.row + i) for one in extents for i in range(one.length)]


@given(extent_lists(), st.data())
def test_pieces_and_locate_agree_with_one_address_per_row(extents, data):
    expected = addresses(extents)
    assert count(extents) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    cut = pieces(extents, start, stop)
    assert addresses(cut) == expected[start:stop]
    assert all(cut[i].stop == cut[i + 1].start for i in range(len(cut) - 1))
    indices = np.array(data.draw(st.permutations(range(len(expected)))))
    epoch, row = locate(extents, indices)
    assert list(zip(epoch, row, strict=True)) == [expected[i] for i in indices]


@given(extent_lists(), st.integers(1, 9), st.integers(0, 20), st.integers(1, 9))
def test_extended_adds_rows_and_merges_only_true_neighbours(extents, epoch, row, length):
    longer = extended(extents, epoch, row, length)
    assert addresses(longer) == addresses(extents) + [(epoch, row + i) for i in range(length)]
    assert longer[-1].stop == count(longer) == count(extents) + length
    follows = addresses(extents)[-1] == (epoch, row - 1)
    assert len(longer) == len(extents) + (not follows)


@given(extent_lists(), st.integers(1, 99))
def test_head_survives_its_record(extents, epoch):
    head = Head(SPEC, epoch, "writer", (extents, (), extents, ()))
    assert decode(encode(head), "here") == head
