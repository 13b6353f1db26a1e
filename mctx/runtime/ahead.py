"""What a block's end asks of the device, asked before the block's tokens are known to the host.

As soon as all steps of a block are under way, so can be the base's reading of it in its ingest
window and the lens's look at the layouts as they will be: both rest on arrays on the device and on
numbers that the host can tell before. So when the last token is known, the scores are nearly there.

With `SessionConfig(decide="ahead")` the lens is told of the present as it was one refocus ago. Then
all that the next decision is made from is known as soon as a refocus is over: it is made step by
step while the device reads or draws tokens, and is there when it is due.

When something is asked or made changes nothing in it: where the tokens turn out to be others, or
the session stands otherwise in the end (it sought another place, a document was edited), or a store
failed, it is done when it is due, from the same query.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref

import jax
import numpy as np

from mctx.focus.layout import Layout
from mctx.runtime import deciding, focusing
from mctx.runtime.deciding import Decision, Standing
from mctx.runtime.focusing import Prepared
from mctx.runtime.steps import Steps, more
from mctx.runtime.storeys import Pair

# Around all that is done before it is due: what fails, whatever it be, is done again when it is,
# and is raised there, in the session whose it is.
TRYING = contextlib.suppress(Exception)


@dataclasses.dataclass
class Spent:
    """Seconds of the host that went into a decision so far: before it was due, beside what was read
    or drawn, and since."""

    ahead: float = 0.0
    due: float = 0.0


class Ahead:
    """The next decision of one session, as far as it is made.

    Attributes:
      prepared: its first look, if that is prepared before the present is known.
      spent: what it has taken so far.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """The session has refocused: what was made is used up."""
        self._at: Standing | None = None
        self._steps: Steps[None] | None = None
        self._decision: Decision | None = None
        self._coming: tuple[jax.Array, jax.Array] | None = None
        self._appended: tuple[tuple, Layout] | None = None
        self.prepared: Prepared | None = None
        self._prepares, self.spent = True, Spent()

    @property
    def foresees(self) -> bool:
        """Whether the reading of blocks to come has been asked for."""
        return self._coming is not None

    def foresee(self, session, tokens: np.ndarray | jax.Array) -> None:
        """Tokens [n], on the host or in the making, are those that will wait: the base is asked to
        read them, and the lens to look, as far as that can be asked before they are known."""
        self._coming = None
        with TRYING:
            states = session.ingestion.ask(tokens)
            if states is None:
                return
            query = focusing.newest(session.query, states)
            self._coming = states, query
            whole = session.fresh * session.model.gist.block + len(tokens) == session.interval
            if whole and session.config.decide == "now" and _may(session):
                self._steps = self._deciding(weakref.proxy(session), query)  # which holds this
                self._step("ahead")

    def query(self, session, states: jax.Array) -> jax.Array:
        """What the lens is told of the present, with the states [L + 1, n, D] of blocks that were
        read last: of those foreseen, the array that a decision may have been begun with."""
        if self._coming and self._coming[0] is states:
            return self._coming[1]
        states = states if isinstance(states, jax.Array) else np.asarray(states)
        return focusing.newest(session.query, jax.device_put(states, session.reader.where))

    def appended(self, session, blocks: int, fresh: int) -> Layout:
        """A session's layouts with the newest `fresh` of `blocks` blocks, made once."""
        of, last = (session.layouts, blocks, session.refocuses), self._appended
        if last is None or last[0][0] is not of[0] or last[0][1:] != of[1:]:
            self._appended = last = of, deciding.appended(session, blocks, fresh)
        return last[1]

    def look(self, session) -> None:
        """One more step of what was begun with the present that is now complete."""
        if session.config.decide == "now" and self._steps is not None:
            self._step("due")

    def think(self, session) -> bool:
        """One step of a decision that needs no present; False when there is nothing more to do."""
        if session.config.decide != "ahead" or not _may(session):
            return False
        if self._steps is None:
            self._steps = self._deciding(weakref.proxy(session), session.query_before)
        return self._step("ahead")

    def prepare(self, session) -> None:
        """All of the next look but the present is made, once."""
        if not self._prepares or self._steps is not None or not _may(session):
            return
        self._prepares = False
        with self._spending("ahead"), TRYING:
            self.prepared = deciding.prepared(session, deciding.coming(session, session.query))

    def decided(self, session) -> Steps[Decision]:
        """What is decided for a session as it stands: made before, if it was for just this."""
        at = deciding.standing(session)
        steps, decision = self._steps, None
        if steps is not None and self._at is not None and self._at.same(at):
            yield  # until all that decide beside this one have asked
            yield from steps
            decision = self._decision
        decision = decision or (yield from deciding.deciding(session, at))
        self.forget()
        return decision

    def _step(self, when) -> bool:
        with self._spending(when):
            return more(self._steps)

    @contextlib.contextmanager
    def _spending(self, when):
        spent, began = self.spent, time.perf_counter()
        yield
        setattr(spent, when, getattr(spent, when) + time.perf_counter() - began)

    def _deciding(self, session, query) -> Steps[None]:
        with TRYING:
            self._at = deciding.coming(session, query)
            decision = yield from deciding.deciding(session, self._at)
            if not decision.blind:
                rows = _fetched(session, decision.layouts, self._at)
                self._decision = decision._replace(rows=rows)


def _fetched(session, layouts: Layout, at: Standing) -> dict[int, Pair]:
    """Rows of blocks that will be shown anew, on their way to the device; the recent blocks' are
    not known yet. Who does not wait for cold blocks is given what is at hand."""
    if session.config.decide == "now":
        return {}  # they are due at once
    blocks = session.assembly.lacking(layouts)
    blocks = blocks[blocks < at.blocks - session.focus.recent]
    if session.config.cold == "async":
        blocks = blocks[~session.cache.lacks(blocks)]
    return jax.device_put(session.cache.fetch(blocks), session.reader.where)


def _may(session) -> bool:
    """Whether the next decision rests on nothing that is still to come: the staging view and a
    caller's worths are asked when it is due, and what leaves the recent blocks must be read."""
    c = session.config
    return not session.worths and not c.staging and c.every <= c.recent
