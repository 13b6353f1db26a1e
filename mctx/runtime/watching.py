"""What a refocus showed, changed, scored, spent and gained, as scalars (design: telemetry)."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus.layout import FocusConfig, Layout
from mctx.runtime import reading
from mctx.runtime.buffer import within

AGES = (8, 64, 512, 4096)  # blocks: borders of the age classes in which coverage is told


class Watch:
    """Compares every refocus with the one before."""

    def __init__(self, focus: FocusConfig):
        self._focus = focus
        self.forget()

    def forget(self) -> None:
        self._before: Layout | None = None

    def report(self, session, decision, written, seconds) -> dict[str, float]:
        """Scalars of one refocus; sums over heads unless said otherwise.

        swap_rate: share of the detailed blocks that were not detailed before. residency: share of
        the rows wanted that were there already. coverage/AGE: share of the blocks younger than
        AGE that are shown as tokens, by any head. overlap: mean share of a head's detailed blocks
        outside the recent ones that another head shows too. blind: 1 where a failing store let
        nothing be scored. ms_ahead: milliseconds of the host that went into the decision before it
        was due, beside what was read or drawn; ms_due: what it took from then on, sessions that
        decide side by side all counted; ms_assemble: what it took to show what was decided.
        """
        blocks, edits = session.blocks, decision.edits
        detailed = self._of_all(session, session.shown)
        fixed = blocks - self._focus.recent  # these and later ones are always shown
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
            "windows_failed": float(session.cache.reads_failed),
            "blind": float(decision.blind),
            "gain_shown": _gain(decision.scored, decision.scores),
            "nodes": float(np.mean(session.layouts.count)),
            "overlap": _overlap([d[d < fixed] for d in detailed]),
        }
        for name, one in zip(("ahead", "due", "assemble"), seconds, strict=True):
            scalars[f"ms_{name}"] = 1e3 * one
        if self._before is not None:
            pairs = zip(detailed, self._of_all(session, self._before), strict=True)
            new = [np.sum(~within(now, before)[0]) for now, before in pairs]
            scalars["swap_rate"] = float(sum(new)) / max(sum(map(len, detailed)), 1)
        shown = np.unique(np.concatenate(detailed)) if blocks else np.zeros(0)
        for age in AGES:
            if blocks >= age:
                scalars[f"coverage/{age}"] = float(np.sum(shown >= blocks - age)) / age
        self.saw(session)
        return {f"refocus/{name}": value for name, value in scalars.items()}

    def saw(self, session) -> None:
        """Takes what is shown now for the refocus before."""
        self._before = session.shown

    def _of_all(self, session, shown):
        return [self._detail(shown, h) for h in range(session.config.heads)]

    def _detail(self, layouts, head):
        live = slice(0, int(layouts.count[head]))
        level, index = np.asarray(layouts.level[head][live]), np.asarray(layouts.index[head][live])
        return index[(level == 0) & np.asarray(layouts.shown[head][live])]


class Probe:
    """What refocuses gained: the tokens after one, behind the working context of before it.

    Both contexts hold the newest tokens, before as the tail, afterwards as recent blocks, and both
    are scored on the same next ones (law 3). So the difference is all that the refocus changed:
    the layout, and the recent blocks' rows where the tail policy renews them.
    """

    def __init__(self, every: int):
        self._every = every
        self.forget()

    def forget(self) -> None:
        self._before = None  # (buffer, tail), copied: the session goes on to change its own
        self._tokens: list[np.ndarray] = []
        self._nll: list[tuple[jax.Array, int]] = []

    def remember(self, session) -> None:
        """Called when a refocus is decided and nothing is written yet."""
        self.forget()
        due = self._every and session.refocuses % self._every == 0
        if due and session.assembly.buffer is not None and session.tail.length > 0:
            self._before = jax.tree.map(jnp.copy, (session.assembly.buffer, session.tail))

    def saw(self, tokens: np.ndarray, nll: Iterable[tuple[jax.Array, int]]) -> None:
        """Tokens read since, and their NLL by call (`Session._read_behind`)."""
        if self._before is not None:
            self._tokens.append(tokens)
            self._nll.extend(nll)

    def gained(self, session) -> dict[str, float]:
        """Of the last refocus, if it was probed: nats/token of all tokens after it but the first.

        Negative is better, as ΔNLL always.
        """
        if self._before is None:
            return {}
        tokens = np.concatenate([*self._tokens, np.zeros(0, np.int32)])
        interval = session.config.every * session.model.gist.block
        if len(tokens) != interval:  # a seek or a prompt in between: one compiled shape only
            return {}
        after = np.concatenate([np.asarray(nll)[:count] for nll, count in self._nll])
        before = reading.peek(
            session.model,
            session.config.merger == "learned",
            session.params,
            *self._before,
            tokens.astype(np.int32),
            session.prefix_bias,
        )
        return {"refocus/delta_nll": float(after[1:].mean() - np.asarray(before).mean())}


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
