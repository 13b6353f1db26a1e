"""A refocus: look, decide, make the buffers hold what is shown, and begin a new tail."""

from __future__ import annotations

import time

from mctx.runtime import cold, deciding, focusing, tailing
from mctx.runtime.memory import room_for
from mctx.runtime.steps import Steps


def refocusing(session, told: bool) -> Steps[dict]:
    """Returns its telemetry, if anybody is `told`. If it raises, the session's layouts and its tail
    are as they were: it can be made again, and decides the same."""
    spent, began = session.ahead.spent, time.perf_counter()
    settings = "capacity", "heads", "staging_capacity"
    settings += ("find",) * bool(session.finding)
    with room_for("the lens's look at the layouts", session.config, *settings):
        decision = yield from session.ahead.decided(session)
    due = spent.due + time.perf_counter() - began
    gained = session.probe.gained(session) if told else {}
    session.probe.remember(session)
    before, session.layouts, began = session.layouts, decision.layouts, time.perf_counter()
    try:
        shown, missed = cold.as_shown(session)
        with session.room():
            written = _assemble(session, shown, decision)
    except BaseException:
        session.layouts = before
        raise
    session.shown = shown
    focusing.prefetch(session.tree, session.layouts, session.prefetched)
    session.prefetched = session.layouts
    if not told:
        session.watch.saw(session)
        return {}
    seconds = spent.ahead, due, time.perf_counter() - began
    report = session.watch.report(session, decision, written, seconds)
    report |= gained | missed.report() | session.storing.report()
    return report | session.spending.since_last(written.gists)


def _assemble(session, shown, decision):
    """The buffers as shown, and the tail as its policy has it; what of it to read again is read
    before anything is written."""
    reread = session.config.reread // session.model.gist.block
    again = tailing.live(session, reread if session.config.tail == "reread" else 0)
    tokens = tailing.tokens_of(session, again) if len(again) else None
    before = again[0] if len(again) else None
    written = session.assembly.assemble(shown, tailing.decoded(session), before, decision.rows)
    tailing.clear(session, deciding.route(session, decision))
    if len(again):
        tailing.read(session, tokens)
    return written
