"""What things cost as one fact grows: a panel a cost, a line a method, both axes logarithmic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments.pictures.style import DPI, FAINT, LINES, STYLE, save, scaled, thousands

ENDS = {"value": ("low", "high")}
NAMES = {"history": "tokens of history"}
MARKERS = "osD^vPX"
FEW = 1.2  # powers of ten below which an axis wants more than those as ticks


def growth(result: Mapping, path: str | Path) -> None:
    """Draws a result that has `panels` (row key -> title) over its `across`; a line a `what`."""
    rows, across = result["rows"], result["across"]
    methods = list(dict.fromkeys(row["what"] for row in rows))
    ticks = sorted({row[across] for row in rows})
    wide = 3.9 * len(result["panels"])
    with rc_context(STYLE):
        figure = Figure(figsize=(wide, 3.9), dpi=DPI)
        panels = figure.subplots(1, len(result["panels"]), squeeze=False)[0]
        for axes, (key, title) in zip(panels, result["panels"].items(), strict=True):
            for number, method in enumerate(methods):
                mine = sorted((r for r in rows if r["what"] == method), key=lambda r: r[across])
                _line(axes, mine, across, key, number)
            _axes(axes, ticks)
            axes.set_title(title)
            axes.set_xlabel(NAMES.get(across, across))
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="upper left", ncols=len(names), bbox_to_anchor=(0.02, 1.0))
        figure.text(
            0.99, 0.965, f"whiskers: {result['interval']}", color=FAINT, size=9, ha="right"
        )
        figure.tight_layout(rect=(0, 0, 1, 0.92))
        save(figure, path)


def _line(axes, rows: Sequence[Mapping], across: str, key: str, number: int) -> None:
    x, y = (np.array([row[name] for row in rows], float) for name in (across, key))
    colour = LINES[number % len(LINES)]
    if key in ENDS:
        ends = [np.array([row.get(end, row[key]) for row in rows], float) for end in ENDS[key]]
        reach = np.maximum([y - ends[0], ends[1] - y], 0)
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5)
    mark = MARKERS[number % len(MARKERS)]
    axes.plot(x, y, marker=mark, ms=4.5, color=colour, lw=1.6, label=rows[0]["what"])


def _axes(axes, ticks: Sequence) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(scaled))
    axes.tick_params(axis="x", labelsize=8)
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if np.log10(high / low) > FEW else (1, 1.5, 2, 3, 5, 7)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
