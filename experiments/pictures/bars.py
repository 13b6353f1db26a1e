"""A result's rows as bars with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.pictures.style import BASELINE, DPI, FAINT, INK, METHOD, STYLE, save
from mctx.errors import UserError

BASELINES = ("recent", "sinks+recent", "random")
BOUNDS = ("hindsight", "full", "handed")  # they see the answer, or everything: no method may
MEASURES = {  # a chart shows the first of these row keys that its result has
    "recovered": "recovered   (0 = only the recent window, 1 = full attention;  better →)",
    "delta_nll": "ΔNLL against sinks+recent, nats/token   (← better)",
    "value": "{unit}",
}
INTERVALS = {  # row key -> the row keys of its interval
    "recovered": ("recovered_low", "recovered_high"),
    "delta_nll": ("delta_low", "delta_high"),
    "value": ("low", "high"),
}
INTERVAL = "bootstrap 95 % over segments"  # what an interval is, unless its result says otherwise


def chart_measure(result: Mapping) -> str | None:
    """The row key that a bar chart of this result shows; None where its rows share no unit."""
    one_unit = len({row.get("unit") for row in result["rows"]}) == 1
    keys = [k for k in MEASURES if any(row.get(k) is not None for row in result["rows"])]
    return next((k for k in keys if k != "value" or one_unit), None)


def bar_chart(result: Mapping, path: str | Path) -> None:
    """Draws a result's rows as horizontal bars with their intervals.

    Shows `recovered` where the result has it, else `delta_nll`, else `value`. Bounds are hollow
    and dashed; rows with `trained` false are hatched. UserError where the rows share no unit.
    """
    key = chart_measure(result)
    if key is None:
        raise UserError(f"result {result['name']} mixes units: give each unit its own result file.")
    rows = [row for row in result["rows"] if row.get(key) is not None]
    value = np.array([row[key] for row in rows], float)
    ends = [[row.get(end) for row in rows] for end in INTERVALS[key]]
    low, high = (np.where([e is None for e in end], value, end).astype(float) for end in ends)
    place = np.arange(len(rows))
    reach = (max(high.max(), 0) - min(low.min(), 0)) or 1.0
    digits = 2 if reach >= 0.5 else 3
    with rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.9 + 0.42 * len(rows)), dpi=DPI)
        axes = figure.subplots()
        for y, v, row in zip(place, value, rows, strict=True):
            axes.barh(y, v, height=0.64, **_bar_look(row))
        if (high > low).any():
            whiskers = [value - low, high - value]
            axes.errorbar(value, place, xerr=whiskers, fmt="none", ecolor=INK, capsize=3, lw=1.2)
            note = f"whiskers: {result.get('interval', INTERVAL)}"
            axes.set_title(note, loc="right", size=9, color=FAINT, pad=10)
        for y, v, lo, hi in zip(place, value, low, high, strict=True):
            x, align, gap = (hi, "left", 0.015) if v >= 0 else (lo, "right", -0.015)
            text = f"{v:,.{digits}f}".replace("-", "−")
            axes.text(x + gap * reach, y, text, va="center", ha=align)
        axes.axvline(0, color=INK, lw=1)
        axes.set_xlim(min(low.min(), 0) - 0.15 * reach * (low.min() < 0),
                      max(high.max(), 0) + 0.15 * reach * (high.max() > 0) or 1)  # all are 0
        axes.set_yticks(place, [row["what"] for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(MEASURES[key].format(unit=rows[0].get("unit") or ""))
        axes.set_title(result["name"], weight="bold", pad=10)
        _bar_legend(figure, rows)
        figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
        save(figure, path)


def is_bound(row: Mapping) -> bool:
    """Whether the row is of something that sees what no method may."""
    return row["what"] in BOUNDS or bool(row.get("sees_future"))


def _bar_look(row: Mapping) -> dict:
    if is_bound(row):
        return {"facecolor": "white", "edgecolor": FAINT, "linestyle": "--", "lw": 1.4}
    colour = BASELINE if row["what"] in BASELINES else METHOD
    if row.get("trained") is False:
        return {"facecolor": "white", "edgecolor": colour, "hatch": "///", "lw": 1.2}
    return {"facecolor": colour}


def _bar_legend(figure: Figure, rows: Sequence[Mapping]) -> None:
    samples = {
        "baseline": {"what": BASELINES[0]},
        "method": {"what": ""},
        "untrained": {"what": "", "trained": False},
        "bound: sees what no method may": {"what": BOUNDS[0]},
    }
    drawn = [_bar_look(row) for row in rows]
    patches = [Patch(label=k, **_bar_look(v)) for k, v in samples.items() if _bar_look(v) in drawn]
    if len(patches) > 1:
        figure.legend(handles=patches, loc="lower center", ncols=len(patches))
