"""Cold nodes: what the layout wants and memory does not have yet (design: virtual texturing).

With `cold="sync"` a refocus waits for them. With 'async' a block whose rows are on no storey of
the cache is shown by its gist, and its window is read beside the decoding; the first refocus that
finds the rows shows the tokens. Where the gist cannot be shown (its level is silent, or the store
fails) the node is silent. Either way the result is a layout, cheaper than the one wanted, under
the same laws; the buffers hold exactly what it says. Sinks and recent blocks are always waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mctx.focus.layout import Layout
from mctx.tree.head import StoreError


class Cold(NamedTuple):
    """How many nodes of all heads are not shown as wanted: by their gist, or not at all."""

    by_gist: int = 0
    silent: int = 0

    def report(self) -> dict[str, float]:
        return {
            "refocus/cold_by_gist": float(self.by_gist),
            "refocus/cold_silent": float(self.silent),
        }


def as_shown(session) -> tuple[Layout, Cold]:
    """The session's layouts [H, n] with their cold nodes replaced; what is missing is asked for."""
    wanted = session.layouts
    if session.config.cold == "sync":
        return wanted, Cold()
    session.cache.take_up()
    level, shown = np.array(wanted.level), np.array(wanted.shown)
    asked, by_gist, silent = [], 0, 0
    for head in range(session.config.heads):
        index = np.asarray(wanted.index)[head]
        rows = _cold_blocks(session, head)
        level[head, rows] = 1  # a block and its gist have one index
        shown[head, rows] = session.focus.show[1]
        lost = _unreadable(session, head, level[head], index, shown[head])
        shown[head, lost] = False
        asked.append(index[rows])
        by_gist += int(shown[head, rows].sum())
        silent += len(np.union1d(lost, rows[~shown[head, rows]]))
    session.cache.request(np.unique(np.concatenate(asked)).astype(np.int64))
    return wanted._replace(level=level, shown=shown), Cold(by_gist, silent)


def _cold_blocks(session, head) -> np.ndarray:
    """Rows of a head's layout that are shown blocks without rows: neither there nor cached."""
    layout = session.layouts
    level, index = np.asarray(layout.level)[head], np.asarray(layout.index)[head]
    held_level, held = session.assembly.holds(head)
    far = (index >= session.focus.sink) & (index < session.blocks - session.focus.recent)
    asked = (level == 0) & np.asarray(layout.shown)[head] & far
    rows = np.flatnonzero(asked & ~np.isin(index, held[held_level == 0]))
    return rows[session.cache.lacks(index[rows])]


def _unreadable(session, head, level, index, shown) -> np.ndarray:
    """Rows of shown gists that are not in the buffer and that the store fails to give."""
    held_level, held = session.assembly.holds(head)
    found = [np.zeros(0, np.int64)]
    for one in np.unique(level[shown & (level > 0)]).tolist():
        here = shown & (level == one) & ~np.isin(index, held[held_level == one])
        rows = np.flatnonzero(here)
        try:
            session.tree.gather(one, index[rows].astype(np.int64))
        except StoreError:
            found.append(rows)
    return np.concatenate(found)
