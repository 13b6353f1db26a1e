"""What can be measured: one file a suite, each a few pure functions that return rows.

Two kinds. A `Suite` turns segments of text into rows in one go (base, gists, lens, …). An `Asking`
has trials: one after the other, each a history and something to ask behind it, with every method
(`experiments.methods`) on each; its records are kept, so that it can be interrupted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.suites.segments import Segments
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened


class Suite(NamedTuple):
    """Attributes:
    items: checkpoint items it reads.
    length: model -> tokens of a segment; None where the base's trained window is too short.
    measure: (opened, segments [n, length], seed) -> {name: rows of a result file}.
    notes: what a reader of the results must know.
    segments: how many, unless asked otherwise; few where each takes long.
    views: of a result whose rows have a `view`: tables, by name.
    """

    items: tuple[str, ...]
    length: Callable[[Wrapped], int | None]
    measure: Callable[[Opened, Segments, int], dict[str, list[dict]]]
    notes: tuple[str, ...] = ()
    segments: int = 64
    views: dict[str, View] = {}


class Asking(NamedTuple):
    """Attributes:
    trials: the facts of each trial of a plan, in order; cheap.
    make: the trial of some facts. A pure function of plan and facts.
    views: of the records of a plan: tables, by name.
    rows: (records, plan) -> rows of the result file, each with its `view`.
    notes: of the records: what a reader of the results must know.
    needs: methods that the others are compared with.
    measure: what of a record tells whether a method beats random blocks, and which way is better.
    interval: what the rows' intervals are.
    """

    trials: Callable[[Plan], list[dict]]
    make: Callable[[Plan, dict], Trial]
    views: dict[str, View]
    rows: Callable[[Sequence[dict], Plan], list[dict]]
    notes: Callable[[Sequence[dict]], list[str]]
    needs: tuple[str, ...] = ("handed",)
    measure: tuple[str, str] = ("exact", "higher")
    interval: str = "95 % over samples: Wilson's for hits, bootstrap for scores"
