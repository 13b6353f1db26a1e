"""What every method showed of one history, beside what it ought to have shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from experiments.pictures.style import DPI, FAINT, GRID, INK, METHOD, STYLE, save, scaled

FACT = "#e69f00"
LEAST = 1 / 400  # of the history: what is thinner cannot be seen


def in_focus(shown: Sequence[Mapping], block: int, title: str, path: str | Path) -> None:
    """A line a method: blocks shown as tokens, before the ranges of the supporting facts.

    Args:
      shown: {"method", "length", "blocks": runs [first, beyond], "support": token ranges,
        "in_focus": share, "exact": 0 or 1}; all of one sample.
      block: tokens of a block.
    """
    length = shown[0]["length"]
    support = [(start, stop - start) for start, stop in shown[0]["support"]]
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.75 + 0.3 * len(shown)), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        height = figure.get_figheight()
        axes.set_position((0.17, 0.95 / height, 0.69, 1 - 1.65 / height))
        for start, width in support:
            axes.axvspan(start, start + max(width, LEAST * length), color=FACT, alpha=0.9, lw=0)
        for y, one in enumerate(shown):
            axes.axhline(y, color=GRID, lw=0.8, zorder=0)
            bars = [(a * block, max((b - a) * block, LEAST * length)) for a, b in one["blocks"]]
            axes.broken_barh(bars, (y - 0.28, 0.56), color=METHOD, lw=0)
            share = "—" if one["in_focus"] is None else f"{one['in_focus']:.0%}"
            said = "right" if one["exact"] else "wrong"
            axes.text(1.075 * length, y, share, ha="right", va="center", size=9)
            axes.text(1.095 * length, y, said, va="center", size=9, color=INK if one["exact"]
                      else FAINT)
        axes.text(1.075 * length, -1, "in focus", ha="right", va="center", size=9, weight="bold")
        axes.text(1.095 * length, -1, "said", va="center", size=9, weight="bold")
        axes.set_yticks(range(len(shown)), [one["method"] for one in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, length)
        axes.xaxis.set_major_locator(MultipleLocator(max(1 << (length // 6).bit_length(), 1)))
        axes.xaxis.set_major_formatter(FuncFormatter(scaled))
        axes.set_xlabel("place in the history (tokens)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.text(0.17, 1 - 0.33 / height, title, weight="bold", size=12)
        patches = [Patch(color=METHOD, label="shown as tokens"),
                   Patch(color=FACT, label="holds a fact that the answer needs")]
        figure.legend(handles=patches, loc="lower left", bbox_to_anchor=(0.16, 0), ncols=2)
        save(figure, path)
