"""Before a session does anything: streams end, and what an error has left undone is done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mctx.errors import UserError
from mctx.runtime import decoding, growing, tailing
from mctx.runtime.steps import finish


class Owed:
    """What a session has begun and not ended; an error, or a stream, may leave it so.

    Attributes:
      drawing: the continuation under way, if any; weakly held.
      behind: tokens were taken that may be complete blocks. adrift: the tree has changed, and where
        the session stands may be another place now. refocus: one was begun.
      unread: tokens that were said when a step failed. torn: the tail may hold what is no history.
      telling: `on_refocus` is being called.
    """

    def __init__(self):
        self.drawing: Callable[[], decoding.Line | None] = lambda: None
        self.behind = self.adrift = self.refocus = self.torn = self.telling = False
        self.unread: list[int] = []


def leave_stream(session) -> None:
    """Ends a continuation that is under way, unless it is the one that asks."""
    line = session.owed.drawing()
    if line is not None and not line.busy:
        line.close()
        session.owed.drawing = lambda: None


def check_end(session) -> None:
    """Raises UserError where the session does not stand at its history's end."""
    if session.blocks != session.tree.blocks:
        raise UserError("the session stands inside its history: seek its end before reading.")


def ready(session, grows: bool = False) -> None:
    """Ends a stream that is open, and does what an error has left undone.

    grows: the history is about to: not while more waits for the store than may.
    """
    owed = session.owed
    if grows and owed.telling:
        raise UserError("on_refocus may look at its session: change it when the call returns.")
    leave_stream(session)
    if grows and session.storing.full:
        session.storing.due()
    owed.refocus |= tailing.renewed(session)
    if owed.behind:
        finish(growing.growing(session))
    if owed.adrift:
        session.seek(session.tree.blocks)
    if owed.refocus:
        session.refocus()
    if not session.assembly.stands:
        session.assembly.remake(session.tail.heads)
    if owed.unread:
        _read_again(session)


def _read_again(session):
    """Tokens that were handed out become history after all."""
    tokens, session.owed.unread, before = session.owed.unread, [], session.length
    try:
        session.read_tokens(np.array(tokens, np.int32))
    except BaseException:
        if session.length == before:
            session.owed.unread = tokens
        raise
