"""Pictures of results and runs, drawn from their files alone, in colours safe for every eye."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from experiments.focus_raster import DEEPEST, SILENT, UNWRITTEN, focus_raster
from mctx.errors import UserError
from mctx.telemetry import read_scalars

DPI = 150
INK, FAINT, GRID = "#24292f", "#8c959f", "#e3e6e9"
BASELINE, METHOD = "#9aa7b4", "#0072b2"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "hatch.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
}

BASELINES = ("recent", "sinks+recent", "random")
BOUNDS = ("hindsight", "full")  # they see the answer, or everything: no method may
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

LOD_LOOKS = {  # raster code -> legend and colour
    0: ("LOD0: tokens", "#ffb000"),
    1: ("LOD1", "#e4572e"),
    2: ("LOD2", "#5b6fc0"),
    DEEPEST: (f"LOD{DEEPEST} and up", "#1d2a5c"),
    SILENT: ("silent", GRID),
    UNWRITTEN: ("not yet written", "#ffffff"),
}
FOCUS_TITLE = "What the model reads: level of detail of every part of the history, over time"
FOCUS_GUIDE = """One row is one moment: left of the diagonal lies all that was read.
The diagonal is the recent window, always tokens.
Bright spots far left of it: the lens brought old text back as tokens."""

REFOCUS = "refocus/"
PANELS = {  # known scalars by their first word after "refocus/", in the order drawn
    "swap_rate": "swap rate (share of token blocks new)",
    "residency": "residency (share of rows already there)",
    "coverage": "coverage by age (share shown)",
    "entries": "entries in the working context",
    "ms": "milliseconds per refocus",
}


def _save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG of at most 256 colours: a fifth of the bytes, and no difference to the eye."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True, dpi=(DPI, DPI))


def _thousands(number: float, _=None) -> str:
    return f"{number / 1000:,.4g}k" if abs(number) >= 10_000 else f"{number:,.4g}"


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
                      max(high.max(), 0) + 0.15 * reach * (high.max() > 0))
        axes.set_yticks(place, [row["what"] for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(MEASURES[key].format(unit=rows[0].get("unit") or ""))
        axes.set_title(result["name"], weight="bold", pad=10)
        _bar_legend(figure, rows)
        figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
        _save(figure, path)


def _bar_look(row: Mapping) -> dict:
    if row["what"] in BOUNDS:
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


def focus_map(refocuses: Iterable[Mapping], path: str | Path) -> None:
    """Draws where the lens looked: history across, time down, colour = LOD shown.

    `refocuses` are the layout records of a session: {"position": tokens read so far, "level",
    "index", "shown": one value a node, "fanouts"}.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 6.6), dpi=DPI)
        axes = figure.add_axes((0.085, 0.105, 0.895, 0.77))
        height, width = (round(n) for n in (6.6 * 0.77 * DPI, 10 * 0.895 * DPI))
        raster, (first, written) = focus_raster(refocuses, height, width)
        colours = ListedColormap([colour for _, colour in LOD_LOOKS.values()])
        axes.imshow(
            raster, colours, vmin=0, vmax=UNWRITTEN, aspect="auto", interpolation="nearest",
            extent=(0, written, written, min(first, written - 1)),
        )
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("place in the history (tokens); a pixel shows the finest LOD in it")
        axes.set_ylabel("tokens read so far (time runs down)")
        present = np.unique(raster)
        patches = [
            Patch(facecolor=colour, edgecolor=FAINT, lw=0.6, label=name)
            for code, (name, colour) in LOD_LOOKS.items()
            if code in present
        ]
        figure.legend(
            handles=patches, loc="upper left", bbox_to_anchor=(0.075, 0.94), ncols=len(patches),
            handlelength=1.2, handleheight=1.1, columnspacing=1.6,
        )
        figure.text(0.085, 0.955, FOCUS_TITLE, size=12, weight="bold")
        axes.text(
            0.985, 0.97, FOCUS_GUIDE, transform=axes.transAxes, ha="right", va="top", size=9.5,
            linespacing=1.5, multialignment="left", bbox={"fc": "white", "ec": "none"},
        )
        _save(figure, path)


def is_loss(scalar: str) -> bool:
    return "loss" in scalar or "nll" in scalar


def is_refocus(scalar: str) -> bool:
    return scalar.startswith(REFOCUS)


def scalar_names(metrics_jsonl: str | Path) -> set[str]:
    return {name for row in _scalars(metrics_jsonl) for name in row}


def telemetry_curves(metrics_jsonl: str | Path, path: str | Path) -> None:
    """Draws the `refocus/…` scalars of a run's metrics.jsonl over time, one panel a quantity.

    `refocus/coverage/old` and `refocus/coverage/new` share the panel `coverage`, one line each.
    """
    rows = _scalars(metrics_jsonl)
    panels: dict[str, dict[str, str]] = {}  # panel -> line name -> key
    for key in dict.fromkeys(k for row in rows for k in row if is_refocus(k)):
        panel, _, line = key.removeprefix(REFOCUS).partition("/")
        panels.setdefault(panel, {})[line.replace("_", " ")] = key
    order = [p for p in PANELS if p in panels] + [p for p in panels if p not in PANELS]
    titled = {PANELS.get(p, p.replace("_", " ")): (rows, panels[p]) for p in order}
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
            for colour, (name, key) in zip(cycle(LINES), keys.items(), strict=False):
                points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
                step, value = np.array(points, float).reshape(-1, 2).T
                axes.plot(step, value, color=colour, lw=0.6, alpha=0.3)
                axes.plot(step, _running_median(value), color=colour, lw=1.8, label=name)
            axes.set_title(title)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
            axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
            axes.grid(axis="y")
            axes.set_xlabel("step")
            if len(keys) > 1:
                low, high = axes.get_ylim()
                axes.set_ylim(low, high + 0.17 * -(-len(keys) // 2) * (high - low))
                axes.legend(loc="upper right", ncols=2, columnspacing=1.2, handlelength=1.2)
        figure.tight_layout()
        _save(figure, path)


def _running_median(value: np.ndarray) -> np.ndarray:
    """Over the nearest fiftieth of the points; few points stay as they are. [n] -> [n]"""
    reach = len(value) // 100
    padded = np.pad(value, reach, "reflect") if reach else value
    windows = sliding_window_view(padded, 2 * reach + 1) if len(value) else padded[:, None]
    return np.median(windows, axis=1)
