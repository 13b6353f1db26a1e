"""What a session's settings mean for its layouts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.focus.layout import minimum_budget
from mctx.runtime.config import LEAST, SessionConfig, check, focus_configs
from tests import tiny


@given(st.integers(1, 2**20))
def test_unless_told_otherwise_no_history_outgrows_the_budget(blocks):
    """What must be shown of a history, however long, is no more than of one of a few top nodes."""
    focus, _ = focus_configs(tiny.MODEL, SessionConfig())
    few = focus.sink + focus.recent + 3 * int(focus.spans[-1])
    shortest = np.max([minimum_budget(focus, n) for n in range(1, few + 1)])
    assert minimum_budget(focus, blocks) <= shortest


@pytest.mark.parametrize("name", sorted(LEAST))
def test_numbers_that_mean_nothing_are_refused(name):
    check(SessionConfig(**{name: max(LEAST[name], getattr(SessionConfig(), name))}), tiny.MODEL)
    for wrong in (LEAST[name] - 1, 1.5, "2", None):
        with pytest.raises(UserError, match=f"{name} must be a whole number from {LEAST[name]} on"):
            check(SessionConfig(**{name: wrong}), tiny.MODEL)


def test_a_node_has_no_more_rows_than_are_kept_apart():
    gist = dataclasses.replace(tiny.GIST, fanouts=(2048, *tiny.GIST.fanouts[1:]))
    with pytest.raises(UserError, match="1024 rows of a node"):
        check(SessionConfig(), dataclasses.replace(tiny.MODEL, gist=gist, window=2048))


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("hysteresis", (0, 0.5), (-1.0, float("nan"), float("inf"), "1", None)),
        ("find", (True, False), (None, 1, "no")),
        ("show", (None, (), (True, False)), ("yes", (1, 0), (True,) * 9, True)),
        ("max_edits", (2**31 - 1,), (2**31,)),
    ],
)
def test_settings_of_another_kind_are_refused(name, good, bad):
    for value in good:
        check(SessionConfig(**{name: value}), tiny.MODEL)
    for value in bad:
        with pytest.raises(UserError, match=f"{name} must be"):
            check(SessionConfig(**{name: value}), tiny.MODEL)


def test_a_folder_for_rows_must_be_there(tmp_path):
    check(SessionConfig(disk_folder=str(tmp_path)), tiny.MODEL)
    with pytest.raises(UserError, match="is no folder"):
        check(SessionConfig(disk_folder=str(tmp_path / "none")), tiny.MODEL)


def test_all_levels_are_shown_where_that_is_asked_for():
    levels = tiny.GIST.levels
    focus, _ = focus_configs(tiny.MODEL, SessionConfig(show=(True,) * (levels + 1)))
    assert all(focus.show)
    assert not focus_configs(tiny.MODEL, SessionConfig())[0].show[levels]
