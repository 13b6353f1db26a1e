"""What a refocus showed, changed, scored and spent, as scalars (design: telemetry)."""

from __future__ import annotations

import numpy as np

from mctx.focus.layout import FocusConfig

AGES = (8, 64, 512, 4096)  # blocks: borders of the age classes in which coverage is told


class Watch:
    """Compares every refocus with the one before."""

    def __init__(self, focus: FocusConfig):
        self._focus = focus
        self.forget()

    def forget(self) -> None:
        self._detailed: list[np.ndarray] | None = None

    def report(self, session, scored, scores, edits, written, milliseconds) -> dict[str, float]:
        """Scalars of one refocus; sums over heads unless said otherwise.

        swap_rate: share of the detailed blocks that were not detailed before. residency: share of
        the rows wanted that were there already. coverage/AGE: share of the blocks younger than
        AGE that are shown as tokens, by any head. overlap: mean share of a head's detailed blocks
        outside the recent ones that another head shows too.
        """
        blocks = session.blocks
        detailed = [self._detail(session.layouts, h) for h in range(session.config.heads)]
        fixed = np.arange(max(blocks - self._focus.recent, 0), blocks)
        scalars = {
            "entries": float(edits[-1].spent.sum()),
            "expanded": float(sum(e.expanded.sum() for e in edits)),
            "collapsed": float(sum(e.collapsed.sum() for e in edits)),
            "forced": float(sum(e.forced.sum() for e in edits)),
            "rows_written": float(written.rows),
            "rows_moved": float(written.moved),
            "residency": 1 - written.rows / max(written.wanted, 1),
            "windows_read": float(session.cache.windows_read),
            "bytes_written": float(written.rows * _row_bytes(session.model)),
            "gain_shown": _gain(scored, scores),
            "nodes": float(np.mean(session.layouts.count)),
            "overlap": _overlap([np.setdiff1d(d, fixed) for d in detailed]),
            "ms_decide": milliseconds[0],
            "ms_assemble": milliseconds[1],
        }
        if self._detailed is not None:
            new = [len(np.setdiff1d(a, b)) for a, b in zip(detailed, self._detailed, strict=True)]
            scalars["swap_rate"] = sum(new) / max(sum(map(len, detailed)), 1)
        shown = np.unique(np.concatenate(detailed)) if blocks else np.zeros(0)
        for age in AGES:
            if blocks >= age:
                scalars[f"coverage/{age}"] = float(np.mean(np.isin(
                    np.arange(blocks - age, blocks), shown)))
        self._detailed = detailed
        return {f"refocus/{name}": value for name, value in scalars.items()}

    def _detail(self, layouts, head):
        live = slice(0, int(layouts.count[head]))
        level, index = np.asarray(layouts.level[head][live]), np.asarray(layouts.index[head][live])
        return index[level == 0]


def _row_bytes(model) -> int:
    c = model.base
    width = 2 if model.dtype == "bfloat16" else 4
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * width


def _gain(layouts, scores) -> float:
    """Predicted nats of the blocks shown as tokens, mean over heads."""
    own = np.asarray(scores.own)
    live = np.arange(own.shape[1]) < np.asarray(layouts.count)[:, None]
    return float(np.sum(own * (live & (np.asarray(layouts.level) == 0)), axis=1).mean())


def _overlap(sets) -> float:
    if len(sets) < 2:
        return 0.0
    shares = [
        np.isin(own, np.concatenate([s for j, s in enumerate(sets) if j != i])).mean()
        for i, own in enumerate(sets)
        if len(own)
    ]
    return float(np.mean(shares)) if shares else 0.0
