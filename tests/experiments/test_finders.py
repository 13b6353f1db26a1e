"""Which heads find: measured of every key/value head, on questions."""

import numpy as np
import pytest

from data.questions import Questions
from experiments.finders import measure
from mctx.errors import UserError
from tests import tiny

ASKED = Questions(
    np.asarray(tiny.tokens(3, 50)),
    np.arange(12) == np.array([[2], [9], [5]]),  # the second answer is too recent to be found
    {"length": 48, "block": 4},
)


def test_every_head_is_measured_on_what_it_could_find():
    rows = measure(tiny.MODEL, tiny.params(), ASKED, count=3, best=8)
    heads = {(row["layer"], row["head"]) for row in rows}
    assert heads == {(0, 0), (1, 0)}
    assert all(row["recall"] == 1 for row in rows)  # there are no more than eight candidates
    with pytest.raises(UserError, match="blocks of 4 tokens, the questions of 8"):
        measure(tiny.MODEL, {}, ASKED._replace(manifest={"length": 48, "block": 8}), 3, 8)
    late = ASKED._replace(support=ASKED.support & (np.arange(12) > 8))
    with pytest.raises(UserError, match="make longer ones"):
        measure(tiny.MODEL, {}, late, 3, 8)
