"""Refocuses that are decided beside the reading before them (`SessionConfig.decide` 'ahead').

The lens is then told of the present as it was one refocus ago. So all that the next decision is
made from is known as soon as a refocus is over: it is made step by step while the device reads or
draws tokens, and is there when it is due. When it is made changes nothing in what is decided: where
the session stands otherwise in the end (it sought another place, a document was edited), or a store
failed, the decision is made when it is due, from the same query.
"""

from __future__ import annotations

import weakref

import jax

from mctx.errors import UserError
from mctx.focus.layout import Layout
from mctx.runtime import deciding
from mctx.runtime.deciding import Decision, Standing
from mctx.runtime.steps import Steps, more
from mctx.runtime.storeys import Pair
from mctx.tree.head import StoreError


class Ahead:
    """The next decision of one session, as far as it is made."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """The session has refocused: what was made is used up."""
        self._at: Standing | None = None
        self._steps: Steps[None] | None = None
        self._decision: Decision | None = None

    def think(self, session) -> bool:
        """One step of the next decision; False when there is nothing more to do."""
        if not _may(session):
            return False
        if self._steps is None:
            self._steps = self._deciding(weakref.proxy(session))  # which holds this
        return more(self._steps)

    def decided(self, session) -> Steps[Decision]:
        """What is decided for a session as it stands: made before, if it was for just this."""
        at = deciding.standing(session)
        steps, decision = self._steps, None
        if steps is not None and self._at is not None and self._at.same(at):
            yield from steps
            decision = self._decision
        decision = decision or (yield from deciding.deciding(session, at))
        self.forget()
        return decision

    def _deciding(self, session) -> Steps[None]:
        """What fails is tried again where it is due, and is raised there."""
        try:
            self._at = deciding.coming(session)
            decision = yield from deciding.deciding(session, self._at)
            if not decision.blind:
                rows = _fetched(session, decision.layouts, self._at)
                self._decision = decision._replace(rows=rows)
        except (StoreError, UserError):
            pass


def _fetched(session, layouts: Layout, at: Standing) -> dict[int, Pair]:
    """Rows of blocks that will be shown anew, on their way to the device; the recent blocks' are
    not known yet. Who does not wait for cold blocks is given what is at hand."""
    blocks = session.assembly.lacking(layouts)
    blocks = blocks[blocks < at.blocks - session.focus.recent]
    if session.config.cold == "async":
        blocks = blocks[~session.cache.lacks(blocks)]
    return jax.device_put(session.cache.fetch(blocks))


def _may(session) -> bool:
    """Whether the next decision rests on nothing that is still to come: the staging view and a
    caller's worths are asked when it is due, and what leaves the recent blocks must be read."""
    c = session.config
    return c.decide == "ahead" and not session.worths and not c.staging and c.every <= c.recent
