"""The part of a refocus that decides: scores of the layouts as they stand, and the edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from mctx.focus.allocator import Edits
from mctx.focus.layout import Dead, Layout, head_statistics, validate
from mctx.models.router import Routing
from mctx.runtime import finding, focusing, reading
from mctx.runtime.focusing import Scores
from mctx.runtime.shelf import Shelf
from mctx.runtime.steps import Steps
from mctx.runtime.storeys import Pair
from mctx.tree.head import StoreError


class Standing(NamedTuple):
    """What a decision is made from; from the same the same comes out, whenever it is made.

    Attributes:
      layouts: [H, n], on the host, of `blocks` blocks; now: number of the refocus.
      query: [L + 1, Q, D], what the lens is told of the present.
      dead_runs, dead: blocks that are never shown.
    """

    layouts: Layout
    blocks: int
    now: int
    query: jax.Array
    dead_runs: np.ndarray
    dead: Dead

    def same(self, other: Standing) -> bool:
        """Whether both are one."""
        pairs = zip(self.layouts, other.layouts, strict=True)
        return (
            (self.blocks, self.now) == (other.blocks, other.now)
            and self.query is other.query
            and self.dead_runs is other.dead_runs
            and all(a is b or np.array_equal(a, b) for a, b in pairs)
        )


def standing(session) -> Standing:
    """Of a session whose refocus is due."""
    query = session.query if session.config.decide == "now" else session.query_before
    when = session.blocks, session.refocuses, query
    return Standing(session.layouts, *when, session.dead_runs, session.dead)


def coming(session, query: jax.Array) -> Standing:
    """How a session will stand when its next refocus is due, if it only reads on; `query`: what the
    lens will be told of the present."""
    more = session.config.every - session.fresh
    when = session.blocks + more, session.refocuses, query
    layouts = session.ahead.appended(session, when[0], more)
    return Standing(layouts, *when, session.dead_runs, session.dead)


def prepared(session, at: Standing) -> focusing.Prepared:
    """The first look of a decision, of which all is known but the query.

    Raises:
      StoreError: gists cannot be read.
    """
    some = focusing.candidates(session.focus, at.layouts, at.blocks)
    return focusing.prepare(session.focus, some, _shelf(session, session.focus), at.dead_runs)


def appended(session, blocks: int, fresh: int) -> Layout:
    """A session's layouts with the newest `fresh` of `blocks` blocks."""
    at = np.int32(blocks), np.int32(fresh), np.int32(session.refocuses)
    return focusing.on_host(focusing.append, session.focus, session.layouts, *at, session.dead)


class Decision(NamedTuple):
    """What a refocus decided.

    Attributes:
      layouts: the edited ones.
      scored, scores: the layouts that were looked at last, and what was seen.
      edits: of every round.
      blind: whether a store that failed let nothing be scored; then only what must go is given up.
      rows: of blocks that it shows anew, as far as they were fetched before it was due.
    """

    layouts: Layout
    scored: Layout
    scores: Scores
    edits: list[Edits]
    blind: bool
    rows: Mapping[int, Pair] = MappingProxyType({})


def deciding(session, at: Standing) -> Steps[Decision]:
    """Scores layouts and edits them, in rounds of one level step; in steps that end where finders,
    lens or allocator have been asked and are not waited for.

    Raises:
      StoreError: gists cannot be read, and cold nodes are waited for ('sync').
    """
    layouts, edits, blind = at.layouts, [], False
    session.looks.clear()
    try:
        if session.finding and not session.worths:
            session.finding.look(at.query, at.blocks, at.dead_runs)
            yield
        ask = _scorer(session, at)
        asked = ask(layouts)
    except StoreError:
        if session.config.cold == "sync":
            raise
        blind, asked = True, lambda: _nothing(layouts)
    for i in range(session.config.rounds or session.focus.levels):
        asked = ask(layouts) if i else asked
        yield
        scored, scores = layouts, asked()
        now = np.int32(at.blocks), np.int32(at.now)
        edited = focusing.later_on_host(
            focusing.edit, session.focus, layouts, scores, *now, at.dead
        )
        yield
        layouts, done = edited()
        edits.append(done)
        focus, rows = session.focus, session.focus.capacity - session.focus.headroom
        if np.any(done.spent > focus.budget) or np.any(layouts.count > rows):
            validate(focus, at.blocks)  # says what has outgrown what
        if blind or not np.any(done.expanded | done.collapsed | done.forced):
            break  # a fixed point: the same scores would choose nothing again
    return Decision(layouts, scored, scores, edits, blind)


_statistics = jax.jit(head_statistics)


def route(session, decision: Decision) -> Routing:
    """The heads that the base will run on until the next refocus, and the merger's gate; on the
    host, where rows are assembled."""
    c = session.config
    if c.router == "static":
        return reading.first_heads(c.top)
    stats = _statistics(decision.scored, decision.scores.own)
    of = session.model, c.router, c.top, session.params, session.query, stats
    return jax.device_get(reading.routed(*of))


def lens(session, focus, layouts: Layout, heads: np.ndarray) -> Scores:
    """What the lens says of some layouts as the session stands, under the adapters of `heads`."""
    return _asked(session, standing(session), focus, layouts, heads)()


def _asked(session, at, focus, layouts, heads) -> Callable[[], Scores]:
    """The lens is asked; what it says is waited for by who calls."""
    history = at.query, at.blocks, at.dead_runs
    kind = focus, heads.tobytes()
    before, last = session.looks.get(kind, ((), None))
    same = before and all(a is b for a, b in zip(before, history, strict=True))
    scores, look = focusing.lens_scores(
        session.model,
        session.params,
        focus,
        layouts,
        _shelf(session, focus),
        finding.found_by(session, *history),
        *history,
        heads,
        last if same else None,
        session.ahead.prepared,
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


def _scorer(session, at) -> Callable[[Layout], Callable[[], Scores]]:
    """What asks for scores of layouts, nats of the best block: of the lens, or `worths`.

    What a refocus looks at once and for all (a table of worths, the staging view) is here.
    """
    if session.worths:
        table = np.array(session.worths(session))
        for start, stop in at.dead_runs:
            table[..., start:stop] = 0.0
        return lambda layouts: partial(focusing.table_scores, session.focus, layouts, table)
    asked = partial(_asked, session, at, session.focus, heads=np.arange(session.config.heads))
    if not session.staging:
        return asked
    session.staging.refresh(session)
    found = session.staging.look(session)
    return lambda layouts: partial(_informed, session, layouts, asked(layouts), found)


def _informed(session, layouts, asked, found):
    return session.staging.inform(session, layouts, asked(), found)


def _nothing(layouts) -> Scores:
    """Of layouts of which nothing can be seen: nothing is worth opening."""
    zeros = np.zeros(np.shape(layouts.level), np.float32)
    return Scores(zeros, zeros)
