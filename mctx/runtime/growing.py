"""Tokens that were read become history: blocks, their gists, and the refocus that is due."""

from __future__ import annotations

import numpy as np

from mctx.runtime import tailing
from mctx.runtime.steps import Steps, finish

NOTHING = np.zeros(0, np.int32)


def read_through(session, tokens: np.ndarray) -> list[tuple]:
    """Reads tokens, at most those until the next refocus, and takes them into the history.

    Returns:
      As `tailing.read`.
    """
    waiting = session.ingestion.waiting
    # The device looks before it reads, the host decides beside it.
    session.ahead.foresee(session, np.concatenate([waiting, tokens]) if len(waiting) else tokens)
    session.ahead.think(session)
    session.owed.torn = True
    read = tailing.read(session, tokens)
    session.take(tokens, read)
    while session.ahead.think(session):
        pass
    finish(growing(session))
    return read


def growing(session) -> Steps[None]:
    """Complete blocks: rows to the cache, states to the query, a node each; then refocus."""
    ahead = session.ahead
    if not ahead.foresees:
        ahead.foresee(session, session.ingestion.waiting)
    yield
    ahead.look(session)  # the allocator is asked, and the store is told beside it
    told = session.tree.blocks
    try:
        for blocks in session.ingestion.feed(NOTHING):
            session.query, told = ahead.query(session, blocks.states), session.tree.blocks
            session.put(blocks)
    except BaseException:
        session.owed.adrift |= told < session.tree.blocks  # of which the query knows nothing
        raise
    fresh = session.tree.blocks - session.blocks
    # More than there is room for: of a text whose ingest failed half way.
    if session.fresh + fresh > session.config.every:
        return session.seek(session.tree.blocks)
    session.blocks, session.owed.behind = session.tree.blocks, False
    if fresh:
        session.layouts = ahead.appended(session, session.blocks, fresh)
        session.fresh += fresh
    if session.fresh >= session.config.every:
        yield from session.refocusing()
        if session.refocuses % session.config.commit_every == 0:
            session.storing.due()
