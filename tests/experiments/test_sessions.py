"""What those who run a session share: room for what is to come."""

import pytest

from experiments import sessions
from mctx.errors import UserError
from mctx.focus.layout import FocusConfig

FOCUS = FocusConfig(fanouts=(4, 2, 2), sink=1, recent=2, budget=40, capacity=20)


def test_lengths_that_no_memory_holds_are_refused_at_once():
    with pytest.raises(UserError, match="31 bits"):
        sessions.ensure_room(FOCUS, 0, 10**11)
    with pytest.raises(UserError, match="raise the"):
        sessions.ensure_room(FOCUS, 0, 2**31 - 1)


def test_every_length_is_looked_at_whatever_the_pieces(monkeypatch):
    def longest():
        return next(n for n in range(200) if not holds(n)) - 1

    def holds(last):
        try:
            sessions.ensure_room(FOCUS, 0, last)
        except UserError:
            return False
        return True

    whole = longest()
    monkeypatch.setattr(sessions, "AT_ONCE", 3)
    assert 3 < whole == longest()
