"""What was predicted against what came true, from the rows of a view."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.pictures.style import DPI, FAINT, METHOD, STYLE, save


def calibration(
    view: Mapping, rows: Sequence[Mapping], title: str, note: str, path: str | Path
) -> None:
    """A point a bin with its intervals; on the dashed line what was predicted came true.

    Rows are "predicted" or "realised", one of each for every value of the view's `across`.
    """
    def told(what):
        some = sorted((r for r in rows if r["what"] == what), key=lambda r: r[view["across"]])
        ends = ("value", "low", "high")
        value, low, high = (np.array([r.get(k, r["value"]) for r in some]) for k in ends)
        return value, np.maximum([value - low, high - value], 0)

    (x, aside), (y, reach) = told("predicted"), told("realised")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.2), dpi=DPI)
        axes = figure.add_axes((0.13, 0.12, 0.83, 0.74))
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.axvline(0, color=FAINT, lw=0.8)
        ends = np.array([min(x.min(), 0), max(x.max(), 0)])
        axes.plot(ends, ends, "--", color=FAINT, lw=1.4, label="as predicted")
        axes.errorbar(x, y, yerr=reach, xerr=aside, fmt="none", ecolor=METHOD, elinewidth=1,
                      capsize=2.5)  # fmt: skip
        axes.plot(x, y, "o-", color=METHOD, ms=5, lw=1.4, label="realised, by bin")
        axes.set_xlabel(f"predicted, {view['unit']}")
        axes.set_ylabel(f"realised, {view['unit']}")
        axes.grid(True)
        axes.legend(loc="upper left")
        figure.text(0.13, 0.945, title, weight="bold", size=11)
        figure.text(0.13, 0.895, note, color=FAINT, size=9)
        save(figure, path)
