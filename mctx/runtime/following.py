"""A session goes along where its tree has become another: documents were edited, or somebody else
has written to trees that it only reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mctx.runtime.readiness import ready

Made = TypeVar("Made")


def edited(session, edit: Callable[[], Made]) -> Made:
    """What an edit of the session's own tree returns; commits, and focuses anew where it changed
    anything. What was made from replaced rows is dropped."""
    ready(session, grows=True)
    session.cache.take_up(wait=True)
    marks, session.owed.adrift = session.assembly.marks(), True
    before = session.tree.length, session.tree.documents
    try:
        made = edit()
        session.storing.now()
    finally:
        session.owed.adrift = before != (session.tree.length, session.tree.documents)
        if session.owed.adrift:
            session.assembly.forget_changed(marks)
            session.seek(session.tree.blocks)
    return made


def refreshed(session) -> bool:
    """Whether others have committed anything to the trees that are only read; it is followed.

    Who shares an open tree may have refreshed it before, so what was made of which rows cannot be
    told any more: all are written anew.
    """
    ready(session)
    session.cache.take_up(wait=True)
    session.owed.adrift = changed = True
    try:
        changed = session.tree.refresh()
    finally:  # should it fail, some of the trees may be others all the same
        session.owed.adrift = changed
        if changed:
            session.assembly.forget()
            session.seek(session.tree.blocks)
    return changed
