"""Methods against one fact: lines with intervals, and heatmaps, from a result's rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.pictures.style import DPI, FAINT, INK, LINES, STYLE, save, scaled

REFERENCE = "sinks+recent"  # grey in every panel, so that panels can be compared
PANELS = {  # what stands together; a method that is in none comes last
    "windows and chance": ("recent", "sinks+recent", "random"),
    "retrieval of blocks": ("bm25", "cosine", "attention", "query gradient"),
    "gists": ("mean-pooled gists", "uniform", "lens+gists"),
    "focus": ("lens", "two heads", "heads+staging"),
    "bounds": ("full", "handed", "hindsight", "hindsight crossfit", "leave-one-in crossfit"),
}
FEW = 3  # methods that fit one panel together
MARKERS = "osD^vPX"
NAMES = {
    "length": "tokens of history",
    "budget": "entries shown",
    "distractors": "look-alikes in the text",
    "position": "position of the pair (0 = first)",
    "depth": "depth (0 = beginning)",
    "noise": "noise on the lens's scores (standard deviations of a text's)",
    "refocus": "refocuses since the subject is back",
}
COLOURS = "cividis"  # the same to every eye, and in grey


def panels(methods: Sequence[str]) -> dict[str, list[str]]:
    """Those of the methods that stand together, by title."""
    found = {title: [m for m in some if m in methods] for title, some in PANELS.items()}
    known = {method for some in PANELS.values() for method in some}
    found["others"] = [method for method in methods if method not in known]
    # The reference alone says nothing that it does not say in every other panel.
    return {title: some for title, some in found.items() if set(some) - {REFERENCE}}


def lines(view: Mapping, rows: Sequence[Mapping], title: str, note: str, path: str | Path) -> None:
    """Value against `across`, a panel for methods of a kind, with intervals."""
    across = view["across"]
    by = {m: _line([r for r in rows if r["what"] == m], across) for m in _methods(rows)}
    shown = panels(list(by)) if len(by) > FEW else {"": list(by)}
    ticks = sorted({row[across] for row in rows})
    below = 0.75 + 0.2 * (1 + max(len(members) for members in shown.values()))  # inches
    width, height = 1.0 + max(2.75 * len(shown), 5.5), 0.95 + 2.6 + below
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, (name, members) in zip(grid, shown.items(), strict=True):
            if REFERENCE in by and REFERENCE not in members:
                x, y, _ = by[REFERENCE]
                axes.plot(x, y, "--", color=FAINT, lw=1.5, label=REFERENCE, zorder=1)
            _plot(axes, {m: by[m] for m in members}, view["log"], ticks)
            axes.set_title(name)
            _ticks(axes, ticks, view["log"])
            axes.grid(axis="y")
            axes.legend(loc="upper left", bbox_to_anchor=(-0.03, -0.21), handlelength=1.8)
        grid[0].set_ylabel(f"{view['unit']} ({view['better']} is better)".strip())
        if view["unit"] == "share":
            grid[0].set_ylim(-0.03, 1.03)
        figure.subplots_adjust(
            left=0.75 / width, right=1 - 0.2 / width, bottom=below / height,
            top=1 - 0.95 / height, wspace=0.08,
        )
        left, right = grid[0].get_position().x0, grid[-1].get_position().x1
        figure.text(left, 1 - 0.32 / height, title, weight="bold", size=12)
        figure.text(left, 1 - 0.55 / height, note, color=FAINT, size=9)
        label = NAMES.get(across, across)
        low = (below - 0.46) / height
        figure.text((left + right) / 2, low, label, ha="center", va="center")
        save(figure, path)


def _methods(rows: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(row["what"] for row in rows))


def _line(rows: Sequence[Mapping], across: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [n] rising, y [n], and how far the interval reaches down and up [2, n]."""
    ordered = sorted(rows, key=lambda row: row[across])
    x, y, low, high = (
        np.array([row[key] for row in ordered], float) for key in (across, "value", "low", "high")
    )
    return x, y, np.maximum([y - low, high - y], 0)


def _plot(axes, by: Mapping[str, tuple], log: bool, ticks: Sequence) -> None:
    """Lines beside each other rather than on top of each other: each a little aside."""
    span = np.log(max(ticks) / min(ticks)) if log and min(ticks) > 0 else max(ticks) - min(ticks)
    steps = (np.arange(len(by)) - (len(by) - 1) / 2) * 0.018 * (span or 1)
    for i, (step, (method, (x, y, reach))) in enumerate(zip(steps, by.items(), strict=True)):
        aside = x * np.exp(step) if log and min(ticks) > 0 else x + step
        colour = FAINT if method == REFERENCE else LINES[i % len(LINES)]
        axes.errorbar(aside, y, yerr=reach, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5)
        dashes = "--" if method == REFERENCE else "-"
        mark = MARKERS[i % len(MARKERS)]
        axes.plot(aside, y, dashes, marker=mark, ms=4.5, color=colour, lw=1.6, label=method)


def _ticks(axes, ticks: Sequence, log: bool) -> None:
    if log and min(ticks) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(scaled))


def heatmaps(view: Mapping, rows: Sequence[Mapping], title: str, path: str | Path) -> None:
    """A panel a method: `across` down, what splits the view to the right, the value in words."""
    downs, rights = ([*sorted({row[view[key]] for row in rows})] for key in ("across", "split"))
    methods = _methods(rows)
    wide = min(6, len(methods))
    high = -(-len(methods) // wide)
    width, height = 0.45 + 0.5 * len(rights), 0.4 + 0.3 * len(downs)
    size = (1.6 + max(width, 1.45) * wide, 1.35 + (height + 0.45) * high)
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(methods) :]:
            axes.remove()
        norm = Normalize(0, 1)
        for axes, method in zip(grid, methods, strict=False):
            _heat(axes, view, [r for r in rows if r["what"] == method], downs, rights, norm)
            axes.set_title(method, size=9)
        bar = figure.colorbar(
            ScalarMappable(norm, COLOURS), ax=list(grid[: len(methods)]), fraction=0.04, pad=0.02
        )
        bar.set_label(view["unit"])
        bar.outline.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=12)
        figure.supxlabel(NAMES.get(view["split"], view["split"]), size=10)
        figure.supylabel(NAMES.get(view["across"], view["across"]), size=10)
        save(figure, path)


def _heat(axes, view, rows, downs, rights, norm) -> None:
    values = np.full((len(downs), len(rights)), np.nan)
    for row in rows:
        values[downs.index(row[view["across"]]), rights.index(row[view["split"]])] = row["value"]
    axes.imshow(np.ma.masked_invalid(values), COLOURS, norm, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        text = "—" if np.isnan(value) else f"{value:.2f}".replace("0.", ".")
        colour = INK if np.isnan(value) or value > 0.55 else "white"
        axes.text(x, y, text, ha="center", va="center", color=colour, size=8)
    axes.set_xticks(range(len(rights)), [scaled(right) for right in rights], size=8)
    axes.set_yticks(range(len(downs)), [f"{down:g}" for down in downs], size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
