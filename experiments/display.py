"""A session's focus while it reads: a panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from experiments.focus_raster import UNWRITTEN, focus_raster
from experiments.pictures import LOD_LOOKS
from mctx.runtime import Session

EDGE = 4  # columns of a panel that are frame


class Moment(NamedTuple):
    """What is known after some tokens were read.

    Attributes:
      tokens: of the history; entries: shown before the tail.
      swap_rate: of the last refocus, NaN before there are two; nll: mean of the last tokens read.
      rate: tokens per second. layout: a record as `focus_raster` takes them.
    """

    tokens: int
    entries: int
    swap_rate: float
    nll: float
    rate: float
    layout: dict


def layout_record(session: Session) -> dict:
    """What the first head shows: {"position", "level", "index", "shown", "fanouts"}."""
    layouts = jax.device_get(session.shown)
    live = slice(0, int(layouts.count[0]))
    nodes = {name: getattr(layouts, name)[0][live].tolist() for name in ("level", "index", "shown")}
    position = session.blocks * session.model.gist.block
    return {"position": position, **nodes, "fanouts": session.model.gist.fanouts}


def strip(layout: dict, columns: int) -> np.ndarray:
    """The history from left to right as LOD codes of `focus_raster`, the finest in each column."""
    if not layout["position"]:
        return np.full(columns, UNWRITTEN)
    return focus_raster([layout], 1, columns)[0][0]


class Display:
    """Shows moments while it is open (a context manager)."""

    def __init__(self, console: Console, title: str, budget: int):
        self._console, self._title, self._budget = console, title, budget
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def show(self, moment: Moment) -> None:
        if self._live:
            self._live.update(self._panel(moment), refresh=True)
        else:
            facts = [f"{name} {value}" for name, value in self._facts(moment).items()]
            self._console.print("  ".join(facts), highlight=False, soft_wrap=True)

    def _facts(self, moment: Moment) -> dict[str, str]:
        known = {
            "tokens": f"{moment.tokens:,}",
            "entries": f"{moment.entries:,}/{self._budget:,}",
            "swap rate": f"{moment.swap_rate:.2f}",
            "NLL": f"{moment.nll:.3f}",
            "tokens/s": f"{moment.rate:,.0f}",
        }
        return {name: "—" if value == "nan" else value for name, value in known.items()}

    def _panel(self, moment: Moment) -> Panel:
        codes = strip(moment.layout, max(self._console.width - EDGE, 8))
        history = Text(no_wrap=True)
        for code in codes:
            history.append("█", LOD_LOOKS[int(code)][1])
        legend = Text()
        for code in np.unique(codes):
            name, colour = LOD_LOOKS[int(code)]
            legend.append("█ ", colour).append(f"{name}   ", "dim")
        facts = Table.grid(padding=(0, 3))
        facts.add_row(*(Text.assemble((f"{k} ", "dim"), v) for k, v in self._facts(moment).items()))
        axis = Table.grid(expand=True)
        axis.add_column()
        axis.add_column(justify="right")
        axis.add_row(Text("oldest", "dim"), Text("newest", "dim"))
        return Panel(Group(history, axis, legend, facts), title=self._title, title_align="left")


class Clock:
    """Tokens per second over the last few reads: the very last one may be of a token or two."""

    def __init__(self, reads: int = 4):
        self._reads = deque([(0, time.perf_counter())], reads + 1)

    def rate(self, tokens: int) -> float:
        """After `tokens` more tokens were read."""
        done, _ = self._reads[-1]
        self._reads.append((done + tokens, time.perf_counter()))
        (first, then), (last, now) = self._reads[0], self._reads[-1]
        return (last - first) / (now - then)
