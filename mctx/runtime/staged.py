"""The session's staging context: refreshed rarely by its own lens, consulted at every refocus."""

from __future__ import annotations

import jax
import numpy as np

from mctx.focus.layout import FocusConfig, Layout, validate
from mctx.runtime import focusing


class Staging:
    """A wide layout over the same tree (design: Staging context).

    It lags behind the heads by up to `every` blocks; the newest blocks are theirs alone.
    """

    def __init__(self, focus: FocusConfig, every: int):
        self.focus, self.every = focus, every
        self.forget()

    def forget(self) -> None:
        self.layout: Layout | None = None  # [1, m], on the host
        self.blocks = 0
        self.refreshes = 0

    def state(self) -> dict[str, np.ndarray]:
        """What would be lost with the process."""
        counts = {"blocks": np.array(self.blocks), "refreshes": np.array(self.refreshes)}
        return counts | (self.layout._asdict() if self.layout else {})

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Stands again where `state` was asked for."""
        self.blocks, self.refreshes = (int(state.pop(name)) for name in ("blocks", "refreshes"))
        self.layout = Layout(**state) if state else None

    def refresh(self, session) -> None:
        """Refocuses if `every` blocks have come since the last time."""
        if self.layout is not None and session.blocks - self.blocks < self.every:
            return
        if self.layout is None or session.blocks - self.blocks > self.every:
            validate(self.focus, session.blocks)
            at = np.int32(session.blocks), session.dead
            self.layout = focusing.on_host(focusing.start, self.focus, 1, *at)
        else:
            fresh = np.int32(session.blocks - self.blocks)
            at = np.int32(session.blocks), fresh, np.int32(self.refreshes)
            self.layout = focusing.on_host(
                focusing.append, self.focus, self.layout, *at, session.dead
            )
        self.blocks = session.blocks
        whole = np.array([session.model.lens.heads])  # the adapter after the heads' own
        for _ in range(self.focus.levels):
            scores = session.lens(self.focus, self.layout, whole)
            at = np.int32(self.blocks), np.int32(self.refreshes)
            self.layout, _ = focusing.on_host(
                focusing.edit, self.focus, self.layout, scores, *at, session.dead
            )
        self.refreshes += 1

    def look(self, session) -> jax.Array:
        """What each head finds among the staged nodes: [H, m]."""
        heads = session.config.heads
        wide = jax.tree.map(lambda x: np.repeat(x, heads, axis=0), self.layout)
        return session.lens(self.focus, wide, np.arange(heads)).own

    def inform(
        self, session, layouts: Layout, scores: focusing.Scores, found: jax.Array
    ) -> focusing.Scores:
        """The heads' scores, raised by what each finds among the staged nodes."""
        one = jax.tree.map(lambda x: x[0], self.layout)
        return focusing.with_staging(session.focus, layouts, scores, one, found)
