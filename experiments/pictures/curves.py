"""What a run logged, over its steps: losses, and what its refocuses did."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.lib.stride_tricks import sliding_window_view

from experiments.pictures.style import DPI, LINES, STYLE, save, thousands
from mctx.errors import UserError
from mctx.telemetry import read_scalars

REFOCUS = "refocus/"
PANELS = {  # known scalars by their first word after "refocus/", in the order drawn
    "swap_rate": "swap rate (share of token blocks new)",
    "residency": "residency (share of rows already there)",
    "coverage": "coverage by age (share shown)",
    "entries": "entries in the working context",
    "delta_nll": "ΔNLL that a refocus brought, nats/token (← better)",
    "flops": "operations per refocus",
    "ms_ahead": "ms of the host on a decision before it is due",
    "ms_due": "ms of a decision since it is due",
    "ms_assemble": "ms to show what was decided",
}


def is_loss(scalar: str) -> bool:
    return ("loss" in scalar or "nll" in scalar) and not is_refocus(scalar)


def is_refocus(scalar: str) -> bool:
    return scalar.startswith(REFOCUS)


def scalar_names(metrics_jsonl: str | Path) -> set[str]:
    return {name for row in _scalars(metrics_jsonl) for name in row}


def telemetry_curves(metrics_jsonl: str | Path, path: str | Path) -> None:
    """Draws the `refocus/…` scalars of a run's metrics.jsonl over time, one panel a quantity.

    `refocus/coverage/old` and `refocus/coverage/new` share the panel `coverage`, one line each.
    """
    rows = _scalars(metrics_jsonl)
    panels = refocus_panels(rows)
    titled = {PANELS.get(p, p.replace("_", " ")): (rows, keys) for p, keys in panels.items()}
    _small_multiples(titled, path, f"{metrics_jsonl} has no scalars named {REFOCUS}…")


def training_curves(metrics_jsonls: Sequence[str | Path], path: str | Path) -> None:
    """Draws the losses (scalars named …loss… or …nll…) of runs, one panel a metrics.jsonl."""
    panels = {}
    for metrics in metrics_jsonls:
        rows = _scalars(metrics)
        keys = dict.fromkeys(k for row in rows for k in row if is_loss(k))
        if keys:
            panels[f"{Path(metrics).parent.name}: loss"] = (rows, {k: k for k in keys})
    _small_multiples(panels, path, "no metrics file has a loss to draw.")


def _scalars(metrics_jsonl: str | Path) -> list[dict]:
    try:
        return read_scalars(Path(metrics_jsonl).parent)
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{metrics_jsonl} cannot be read as one JSON object a line.") from None


def _small_multiples(panels: Mapping[str, tuple], path: str | Path, empty: str) -> None:
    """Draws {title: (rows, {line name: key})}, at most three panels a row."""
    if not panels:
        raise UserError(empty)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.9 * across + 0.4, 2.7 * down), dpi=DPI)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (title, (rows, keys)) in zip(grid, panels.items(), strict=False):
            draw_curves(axes, title, rows, keys)
        figure.tight_layout()
        save(figure, path)


def draw_curves(axes, title: str, rows: Sequence[Mapping], keys: Mapping[str, str]) -> None:
    """Scalars over steps into one panel: {line name: key}; of many points, a running median."""
    for colour, (name, key) in zip(cycle(LINES), keys.items(), strict=False):
        points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
        step, value = np.array(points, float).reshape(-1, 2).T
        axes.plot(step, value, color=colour, lw=0.6, alpha=0.3)
        axes.plot(step, _running_median(value), color=colour, lw=1.8, label=name)
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))
    axes.grid(axis="y")
    axes.set_xlabel("step")
    if len(keys) > 1:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.17 * -(-len(keys) // 2) * (high - low))
        axes.legend(loc="upper right", ncols=2, columnspacing=1.2, handlelength=1.2)


def refocus_panels(rows: Sequence[Mapping]) -> dict[str, dict[str, str]]:
    """Known scalars of refocuses by panel: {panel: {line name: key}}, in the order drawn."""
    panels: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(k for row in rows for k in row if is_refocus(k)):
        panel, _, line = key.removeprefix(REFOCUS).partition("/")
        panels.setdefault(panel, {})[line.replace("_", " ")] = key
    order = [p for p in PANELS if p in panels] + [p for p in panels if p not in PANELS]
    return {p: panels[p] for p in order}


def _running_median(value: np.ndarray) -> np.ndarray:
    """Over the nearest fiftieth of the points; few points stay as they are. [n] -> [n]"""
    reach = len(value) // 100
    padded = np.pad(value, reach, "reflect") if reach else value
    windows = sliding_window_view(padded, 2 * reach + 1) if len(value) else padded[:, None]
    return np.median(windows, axis=1)
