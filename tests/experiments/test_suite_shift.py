"""The suite `shift`: sessions that were away, against one that never left."""

import numpy as np
import pytest

from experiments.suites import shift
from experiments.suites.segments import Segments
from mctx.errors import UserError
from tests.runtime import small

TURN = shift.Turn(before=24, away=16, streamed=4, back=4, budget=12)


def segments(groups="aabb"):
    size = TURN.length(small.MODEL)
    return Segments(np.stack([small.text(size, i) for i in range(len(groups))]), tuple(groups))


def test_a_subject_needs_another_to_change_to():
    with pytest.raises(UserError, match="two packages"):
        shift.measure(small.opened(), segments("aa"), 0, TURN)


def test_a_session_that_was_not_away_reads_as_one_that_never_left():
    """Away for no block, nothing differs: the same history, the same focus, the same NLL."""
    at_home = shift.Turn(before=24, away=0, streamed=4, back=4, budget=12)
    found = shift.measure(small.opened(), segments(), 0, at_home)["shift"]
    by = {(r["view"], r["what"], r["refocus"]): r["value"] for r in found}
    for k in range(4):
        assert by["nll", "lens", k] == pytest.approx(0, abs=1e-5)
        assert by["same", "lens", k if k < 3 else 4] == 1
    assert by["back", "recency", 0] == 1 and by["focus", "recency", 4] == 1


def test_what_is_read_meanwhile_is_another_subject():
    found = shift.measure(small.opened(), segments(), 0, TURN)["shift"]
    by = {(r["view"], r["what"], r["refocus"]): r for r in found}
    assert {view for view, *_ in by} == set(shift.VIEWS)
    assert by["focus", "recency", 0]["value"] == 0  # all that is recent is of the other subject
    for k in TURN.counted():  # nor does reading on bring back what was before
        assert by["back", "recency", k]["value"] == by["focus", "recency", k]["value"] == 0
    assert 0 < by["back", "recency", 0]["high"] < 1  # of few texts, which are all alike
    rises = [by["back", "lens", k]["value"] for k in TURN.counted()]
    assert rises == sorted(rises)
    assert abs(by["nll", "recency", 0]["value"]) > 1e-4
    assert by["after", "lens", 0]["value"] == pytest.approx(
        np.mean([by["nll", "lens", k]["value"] for k in range(4)])
    )


def test_shares_are_of_far_detail():
    far = np.array([2, 3, 30, 41])  # blocks 24 to 39 are of the other subject
    assert shift.old_share(far, TURN) == 2 / 3  # block 41 was read after the return
    assert shift.old_share(far[3:], TURN) == shift.old_share(far[:0], TURN) == 0
    assert shift.common(np.array([2, 5, 50]), far, TURN) == 0.5
