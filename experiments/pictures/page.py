"""One page of a session that read a text: where it looked, what it brought back and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.pictures.curves import PANELS, draw_curves, refocus_panels
from experiments.pictures.focus_map import draw_focus
from experiments.pictures.style import DPI, FAINT, METHOD, STYLE, save

WIDTH, MAP, CURVES, LINE = 11.0, 4.6, 2.5, 0.142  # inches
COLUMNS = 150  # characters of a line
MOST = 8  # blocks that are told of
SHOWN = ("swap_rate", "residency", "coverage")
TEXTS = "Brought back, and the last tokens that pulled it"
GUIDE = (
    "The darker, the more a token adds to what the lens thinks the block is worth (gradient of its "
    "predicted utility, times the token's states)."
)


def page(
    layouts: Sequence[Mapping], scalars: Sequence[Mapping], reasons: Sequence[Mapping], title: str,
    path: str | Path,
) -> None:
    """Focus map, curves of the refocuses, and the blocks brought back that the lens thought most
    of, numbered in the map.

    Args:
      layouts: as of `focus_map`. scalars: lines of metrics.jsonl.
      reasons: records of `experiments.reasons`.
    """
    told = sorted(chosen(reasons), key=lambda one: one["position"])
    texts = [lines_of(one) for one in told]
    height = 0.75 + MAP + 0.75 + CURVES + 0.75 + LINE * sum(2.2 + len(t) for t in texts) + 0.2
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        low = height - 0.75 - MAP
        axes = figure.add_axes((0.08, low / height, 0.9, MAP / height))
        patches = draw_focus(axes, layouts)
        figure.legend(handles=patches, loc="upper left", ncols=len(patches),
                      bbox_to_anchor=(0.07, 1 - 0.36 / height))  # fmt: skip
        for number, one in enumerate(told, 1):
            place = (one["block"] + 0.5) * one["of"]
            axes.annotate(
                str(number), (place, one["position"]), (0, 9), textcoords="offset points",
                ha="center", size=9, weight="bold", color="white",
                bbox={"boxstyle": "circle,pad=0.15", "fc": METHOD, "ec": "white"},
                arrowprops={"arrowstyle": "-", "color": METHOD},
            )
        figure.text(0.08, 1 - 0.28 / height, title, size=13, weight="bold")
        low -= 0.75 + CURVES
        _curves(figure, scalars, low / height, (CURVES - 0.55) / height)
        _texts(figure, told, texts, low, height)
        save(figure, path)


def chosen(reasons: Sequence[Mapping]) -> list[Mapping]:
    """Of each block the record in which it was worth most; of these the best few."""
    best: dict[int, Mapping] = {}
    for one in sorted(reasons, key=lambda one: one["utility"]):
        best[one["block"]] = one
    return sorted(best.values(), key=lambda one: -one["utility"])[:MOST]


def lines_of(one: Mapping) -> list[list[tuple[int, str, float]]]:
    """The query as lines of (column, word, pull from 0 to 1)."""
    pull = np.maximum(one["pull"], 0)
    pull = pull / max(pull.max(initial=0), 1e-30)
    lines, at = [[]], 0
    for word, strength in zip(one["words"], pull, strict=True):
        word = plain(word)
        if at + len(word) > COLUMNS:
            lines, at = [*lines, []], 0
        lines[-1].append((at, word, float(strength)))
        at += len(word)
    return lines


def plain(text: str) -> str:
    """On one line, in characters that every font has."""
    text = text.replace("\r", "").replace("\n", "¶").replace("\t", " ")
    return "".join(c if c.isprintable() else "·" for c in text)


def _curves(figure, scalars, low, height):
    known = refocus_panels(scalars)
    some = {name: known[name] for name in SHOWN if name in known}
    for number, (name, keys) in enumerate(some.items()):
        left = 0.08 + number * 0.31
        axes = figure.add_axes((left, low + 0.35 * height, 0.26, 0.9 * height))
        draw_curves(axes, PANELS[name], scalars, keys)
        axes.set_xlabel("tokens read")


def _texts(figure, told, texts, low, height):
    """Every block's own text, and the query's, shaded; `low`: inches where the curves end."""
    figure.text(0.08, (low - 0.22) / height, TEXTS, size=11, weight="bold")
    figure.text(0.08, (low - 0.4) / height, GUIDE, size=9, color=FAINT)
    top = low - 0.5
    axes = figure.add_axes((0.08, 0, 0.9, top / height))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(top / LINE, 0)
    axes.axis("off")
    line = 0.5
    for number, (one, text) in enumerate(zip(told, texts, strict=True), 1):
        away = one["position"] - one["block"] * one["of"]
        head = f"{number}  {away:,} tokens back, {one['utility']:.2f} nats:  {plain(one['text'])}"
        _write(axes, line, head[:COLUMNS], weight="bold")
        for words in text:
            line += 1
            for at, word, strength in words:
                shade = to_rgba("#ffb000", 0.9 * strength)
                axes.add_patch(Rectangle((at, line - 0.5), len(word), 1, fc=shade, lw=0))
                _write(axes, line, word, at)  # each on its shade, however wide a font's letters are
        line += 2.2
    if not told:
        _write(axes, line, "Nothing was brought back.", color=FAINT)


def _write(axes, line, text, at=0, **how):
    """Of one width a character: COLUMNS of them fill the axes."""
    inches = axes.get_position().width * axes.figure.get_size_inches()[0]
    size = 72 * inches / COLUMNS / 0.602
    axes.text(at, line, text, family="DejaVu Sans Mono", size=size, va="center_baseline",
              parse_math=False, **how)  # fmt: skip
