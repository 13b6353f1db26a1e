"""Quality against cost, with the methods that no other beats in both."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.pictures.style import BASELINE, DPI, FAINT, INK, LINES, METHOD, STYLE, save

EVERY = 32  # tokens between two refocuses, in what a token costs
PRICES = {  # per token: what decoding it costs, and what a refocus does
    "milliseconds per token": ("ms_token", "ms_refocus", 1.0),
    "MFLOP per token": ("flops_token", "flops_refocus", 1e6),
}
GAP = 0.052  # of the axes' height, between two labels


def tradeoff(
    view: Mapping,
    rows: Sequence[Mapping],
    costs: Sequence[Mapping],
    bounds: set[str],
    title: str,
    path: str | Path,
) -> None:
    """A panel a price; rows and costs are of one length, `bounds` methods outside the contest."""
    quality = {row["what"]: row for row in rows}
    told = [cost for cost in costs if cost["what"] in quality]
    value = np.array([quality[cost["what"]]["value"] for cost in told])
    ends = [np.array([quality[c["what"]][end] for c in told], float) for end in ("low", "high")]
    reach = np.maximum([value - ends[0], ends[1] - value], 0)
    fit = np.array([cost["what"] not in bounds for cost in told])
    with rc_context(STYLE):
        figure = Figure(figsize=(12.5, 1.6 + 0.24 * max(len(told), 12)), dpi=DPI)
        for axes, (name, price) in zip(figure.subplots(1, 2, sharey=True), PRICES.items(),
                                       strict=True):
            paid = np.array([_paid(cost, *price) for cost in told])
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=_digits(paid)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            _points(axes, paid, value, reach, fit)
            front = on_front(paid, value, fit, view["better"])
            axes.plot(paid[front], value[front], color=LINES[1], lw=1.6, zorder=1)
            axes.set_xlabel(f"{name}, one refocus every {EVERY}")
            axes.grid(axis="y")
            axes.set_ylim(*_limits(value, reach))
            _labels(axes, paid, value, [cost["what"] for cost in told], set(front))
        figure.axes[0].set_ylabel(f"{view['unit']} ({view['better']} is better)".strip())
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.065, right=0.865, top=1 - 0.85 / height, bottom=0.55 / height, wspace=0.45
        )
        figure.text(0.065, 1 - 0.3 / height, title, weight="bold", size=12)
        note = "line and bold: no method that may be used is better and cheaper · hollow: bounds"
        figure.text(0.065, 1 - 0.55 / height, note, color=FAINT, size=9)
        save(figure, path)


def _digits(paid: np.ndarray) -> tuple[float, ...]:
    """First digits of the ticks: fewer, the more powers of ten there are."""
    decades = np.log10(paid.max() / paid.min()) if paid.min() > 0 else 0.0
    return (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.2 else (1, 3)


def _paid(cost: Mapping, token: str, refocus: str, scale: float) -> float:
    return (cost[token] + cost[refocus] / EVERY) / scale


def on_front(
    paid: np.ndarray, value: np.ndarray, fit: np.ndarray, better: str
) -> list[int]:
    """Indices of those that no fit one beats in both, rising in price."""
    gain = -value if better == "lower" else value
    found: list[int] = []
    for i in np.lexsort((-gain, paid)):
        if fit[i] and (not found or gain[i] > gain[found[-1]]):
            found.append(int(i))
    return found


def _points(axes, paid, value, reach, fit) -> None:
    for which, face in ((fit, METHOD), (~fit, "white")):
        if which.any():
            look = dict(fmt="o", ms=6, mfc=face, mec=METHOD, ecolor=BASELINE, elinewidth=1)
            axes.errorbar(paid[which], value[which], yerr=reach[:, which], **look)


def _limits(value: np.ndarray, reach: np.ndarray) -> tuple[float, float]:
    low, high = (value - reach[0]).min(), (value + reach[1]).max()
    room = 0.04 * ((high - low) or 1.0)
    return low - room, high + room


def _labels(axes, paid, value, names, front) -> None:
    """Names down the right margin, in the order of their points, each with a thin leader."""
    low, high = axes.get_ylim()
    order = np.argsort(value, kind="stable")
    places = spread((value[order] - low) / (high - low), GAP)
    for i, place in zip(order, places, strict=True):
        axes.annotate(
            names[i], (paid[i], value[i]), (1.03, place), textcoords="axes fraction", size=9,
            va="center", color=INK, weight="bold" if int(i) in front else "normal",
            arrowprops=dict(arrowstyle="-", color=FAINT, lw=0.6, shrinkA=1, shrinkB=4, alpha=0.7,
                            relpos=(0, 0.5)),
            annotation_clip=False,
        )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising places, moved as little as it takes to be `gap` apart and, if they can, in 0..1.

    Without the gaps they need only not fall: isotonic regression, by pooling adjacent violators.
    """
    steps = gap * np.arange(len(places))
    pools: list[list[float]] = []
    for wanted in places - steps:
        pools.append([float(wanted)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [np.mean(pool) for pool in pools for _ in pool]
    return np.clip(level, 0, max(1 - gap * (len(places) - 1), 0)) + steps
