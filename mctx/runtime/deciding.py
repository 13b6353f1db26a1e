"""The part of a refocus that decides: scores of the layouts as they stand, and the edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mctx.focus.allocator import Edits
from mctx.focus.layout import Layout, validate
from mctx.models.router import Routing
from mctx.runtime import finding, focusing, reading
from mctx.runtime.focusing import Scores
from mctx.runtime.shelf import Shelf
from mctx.tree.head import StoreError


class Decision(NamedTuple):
    """What a refocus decided; the session's layouts are edited already.

    Attributes:
      scored, scores: the layouts that were looked at last, and what was seen.
      edits: of every round.
      blind: whether a store that failed let nothing be scored; then only what must go is given up.
    """

    scored: Layout
    scores: Scores
    edits: list[Edits]
    blind: bool


def decide(session) -> Decision:
    """Scores the session's layouts and edits them, in rounds of one level step.

    Raises:
      StoreError: gists cannot be read, and cold nodes are waited for ('sync').
    """
    edits, blind = [], False
    session.looks.clear()
    try:
        score = _scorer(session)
        first = score()
    except StoreError:
        if session.config.cold == "sync":
            raise
        blind, first = True, _nothing(session)
    for i in range(session.config.rounds or session.focus.levels):
        scored, scores = session.layouts, first if i == 0 else score()
        at = np.int32(session.blocks), np.int32(session.refocuses)
        session.layouts, done = focusing.on_host(
            focusing.edit, session.focus, session.layouts, scores, *at, session.dead
        )
        edits.append(done)
        if np.any(done.spent > session.focus.budget):
            validate(session.focus, session.blocks)  # says what has outgrown what
        if blind or not np.any(done.expanded | done.collapsed | done.forced):
            break  # a fixed point: the same scores would choose nothing again
    return Decision(scored, scores, edits, blind)


def route(session, decision: Decision) -> Routing:
    """The heads that the base will run on until the next refocus, and the merger's gate; on the
    host, where rows are assembled."""
    c = session.config
    if c.router == "static":
        return reading.first_heads(c.top)
    stats = focusing.head_statistics(decision.scored, decision.scores.own)
    of = session.model, c.router, c.top, session.params, session.query, stats
    return jax.device_get(reading.routed(*of))


def lens(session, focus, layouts: Layout, heads: np.ndarray) -> Scores:
    """What the lens says of some layouts, under the adapters of `heads`."""
    history = session.query, session.blocks, session.dead_runs
    kind = focus, heads.tobytes()
    before, last = session.looks.get(kind, ((), None))
    same = before and all(a is b for a, b in zip(before, history, strict=True))
    scores, look = focusing.lens_scores(
        session.model,
        session.params,
        focus,
        layouts,
        _shelf(session, focus),
        finding.found_by(session),
        *history,
        heads,
        last if same else None,
    )
    if look is not last:
        session.spending.scored(focus, len(heads))
    session.looks[kind] = history, look
    return scores


def _shelf(session, focus) -> Shelf:
    """Where the gists stand that the lens looks at in layouts of one kind."""
    if focus not in session.shelves:
        layouts = session.config.heads if focus == session.focus else 1
        nodes = focus.capacity + focusing.most_parents(focus, focus.capacity)
        session.shelves[focus] = Shelf(session.tree, layouts * nodes)
    return session.shelves[focus]


def _scorer(session) -> Callable[[], Scores]:
    """What scores the layouts as they stand, nats of the best block: the lens, or `worths`.

    What a refocus looks at once and for all (a table of worths, the staging view) is here.
    """
    if session.worths:
        table = np.array(session.worths(session))
        for start, stop in session.dead_runs:
            table[..., start:stop] = 0.0
        return lambda: focusing.table_scores(session.focus, session.layouts, table)
    heads = np.arange(session.config.heads)
    if not session.staging:
        return lambda: lens(session, session.focus, session.layouts, heads)
    session.staging.refresh(session)
    found = session.staging.look(session)
    return lambda: session.staging.inform(
        session, lens(session, session.focus, session.layouts, heads), found
    )


def _nothing(session) -> Scores:
    """Of layouts of which nothing can be seen: nothing is worth opening."""
    zeros = np.zeros(np.shape(session.layouts.level), np.float32)
    return Scores(zeros, zeros)
