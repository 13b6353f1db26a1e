"""Where the lens looked: level of detail of every part of the history, over time."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from experiments.focus_raster import DEEPEST, SILENT, UNWRITTEN, focus_raster
from experiments.pictures.style import DPI, FAINT, GRID, STYLE, save, thousands

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
Bright spots far left of it, if any: old text that was brought back as tokens."""


def focus_map(refocuses: Iterable[Mapping], path: str | Path) -> None:
    """Draws where the lens looked: history across, time down, colour = LOD shown.

    `refocuses` are the layout records of a session: {"position": tokens read so far, "level",
    "index", "shown": one value a node, "fanouts"}.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 6.6), dpi=DPI)
        axes = figure.add_axes((0.085, 0.105, 0.895, 0.77))
        patches = draw_focus(axes, refocuses)
        figure.legend(
            handles=patches, loc="upper left", bbox_to_anchor=(0.075, 0.94), ncols=len(patches),
            handlelength=1.2, handleheight=1.1, columnspacing=1.6,
        )
        figure.text(0.085, 0.955, FOCUS_TITLE, size=12, weight="bold")
        axes.text(
            0.985, 0.97, FOCUS_GUIDE, transform=axes.transAxes, ha="right", va="top", size=9.5,
            linespacing=1.5, multialignment="left", bbox={"fc": "white", "ec": "none"},
        )
        save(figure, path)


def draw_focus(axes, refocuses: Iterable[Mapping]) -> list[Patch]:
    """The map alone, into axes that have their place; returns what a legend shows."""
    inches = axes.get_position().size * axes.figure.get_size_inches()
    width, height = (round(n) for n in inches * DPI)
    raster, (first, written) = focus_raster(refocuses, height, width)
    colours = ListedColormap([colour for _, colour in LOD_LOOKS.values()])
    axes.imshow(
        raster, colours, vmin=0, vmax=UNWRITTEN, aspect="auto", interpolation="nearest",
        extent=(0, written, written, min(first, written - 1)),
    )
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))
    axes.set_xlabel("place in the history (tokens); a pixel shows the finest LOD in it")
    axes.set_ylabel("tokens read so far (time runs down)")
    present = np.unique(raster)
    return [
        Patch(facecolor=colour, edgecolor=FAINT, lw=0.6, label=name)
        for code, (name, colour) in LOD_LOOKS.items()
        if code in present
    ]
