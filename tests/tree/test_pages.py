"""Pages hold what was given them, whatever was claimed, given up and moved meanwhile."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mctx.tree.pages import ABSENT, Bits, Pages

SIZE, EPOCHS, PAGES, MANY = 2, 2, 12, 10**6
LOADED = 1  # the epoch whose pages are read into claimed memory

number = st.integers(0, PAGES - 1)
steps = st.one_of(
    st.tuples(st.just("claim"), st.integers(1, 2)),
    st.tuples(st.just("fill"), number),
    st.tuples(st.just("abandon"), number),
    st.tuples(st.just("put"), st.integers(1, EPOCHS), st.sets(number, min_size=1, max_size=5)),
    st.tuples(st.just("find"), st.integers(1, EPOCHS), st.lists(number, min_size=1, max_size=5)),
)


def stored(epoch, pages):
    """What every row of these pages says: [n·SIZE, 1]."""
    return np.repeat(np.uint16(1000 * epoch + np.asarray(pages)), SIZE)[:, None]


# A page is asked for that is not there, while the last slot of all is being read into.
MISSED = [("claim", 1), ("find", 2, [0]), ("put", 2, {0, 1, 2}), ("put", 2, {3}), ("fill", 0)]


@example(4, 1, [*MISSED, ("find", 2, [3])])
@settings(max_examples=400)
@given(st.integers(2, 8), st.integers(1, 8), st.lists(steps, max_size=25))
def test_what_is_found_is_what_was_stored(capacity, reserved, script):
    pages = Pages(Bits(1), SIZE, capacity * SIZE * 2)
    pages.reserve(min(reserved, capacity))
    claims, loaded = [], 0
    for what, *how in script:
        if what == "claim":
            slots = pages.claim(how[0])
            if slots is not None:
                claims.append((np.arange(loaded, loaded + how[0]), slots, pages.claimed(slots)))
                loaded += how[0]
        elif what in ("fill", "abandon") and claims:
            wanted, slots, memory = claims.pop(how[0] % len(claims))
            if what == "fill":
                memory[:] = stored(LOADED, wanted)
                pages.fill(1, LOADED, wanted, slots, memory, MANY)
            else:
                pages.abandon(slots)
        elif what == "put":
            wanted = np.array(sorted(how[1]))
            bits = stored(how[0], wanted).reshape(len(wanted), SIZE, 1)
            pages.put(1, how[0], wanted, bits, MANY)
        elif what == "find":
            places = pages.find(1, how[0], np.array(how[1]) * SIZE + 1)
            held = places != ABSENT
            wanted = stored(how[0], how[1])[::SIZE][held].view(np.uint16)
            found = pages._held[0][places[held]]
            np.testing.assert_array_equal(found, wanted)
        assert len(pages) <= capacity
