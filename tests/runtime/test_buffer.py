"""Law 7 for rows: a buffer holds what is wanted in a prefix and writes only what it lacked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mctx.runtime import buffer

ROWS = 24
WANTED = st.lists(st.integers(0, 40), unique=True, max_size=ROWS).map(
    lambda keys: np.array(keys, np.int64)
)


def carried_out(plan, rows):
    """What the device does: moves read the rows as they were, then new rows are written."""
    after = rows.copy()
    after[plan.move_to] = rows[plan.move_from]
    after[plan.new_row] = plan.new_key
    return after


@given(st.lists(WANTED, min_size=1, max_size=6))
def test_valid_rows_stay_a_prefix_and_only_new_ones_are_written(history):
    keys, rows = np.full(ROWS, buffer.EMPTY, np.int64), np.full(ROWS, -7, np.int64)
    for wanted in history:
        plan = buffer.plan(keys, wanted)
        lacking = np.setdiff1d(wanted, keys)
        prefix = plan.keys[: len(wanted)]
        assert sorted(prefix) == sorted(wanted)
        assert np.all(plan.keys[len(wanted) :] == buffer.EMPTY)
        assert sorted(plan.new_key) == sorted(lacking)  # what stays is not written again
        beyond = np.flatnonzero(np.isin(keys, wanted) & (np.arange(ROWS) >= len(wanted)))
        assert sorted(plan.move_from) == beyond.tolist()  # what need not move does not
        assert not np.intersect1d(plan.move_to, plan.new_row).size
        rows = carried_out(plan, rows)
        keys = plan.keys
        np.testing.assert_array_equal(rows[: len(wanted)], prefix)


@given(WANTED, WANTED)
def test_positions_are_the_order_in_time(before, wanted):
    held = buffer.plan(np.full(ROWS, buffer.EMPTY, np.int64), before).keys
    plan = buffer.plan(held, wanted)
    filled = plan.keys != buffer.EMPTY
    np.testing.assert_array_equal(wanted[plan.positions[filled]], plan.keys[filled])
    assert not plan.positions[~filled].any()


@given(st.integers(0, 15), st.integers(0, 2**31 - 1), st.integers(0, 1023), st.integers(0, 1))
def test_a_key_tells_what_it_was_made_of(level, index, offset, kept):
    parts = [np.array([x]) for x in (level, index, offset, kept)]
    assert [int(x[0]) for x in buffer.decode(buffer.encode(*parts))] == [level, index, offset, kept]
