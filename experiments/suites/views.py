"""From records to rows: each view is one table, methods down, one fact across."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from experiments.methods import METHODS
from experiments.statistics import Interval, interval, proportion, ratio


@dataclasses.dataclass(frozen=True)
class View:
    """How rows of one view are laid out; the report draws what this says.

    Attributes:
      title: what a reader sees above it.
      across: the row key that tells columns apart. split: the one that tells tables apart, if any.
      unit: of the values.
      pictures: 'lines' (value against `across`), 'heatmap' (`across` down, `split` to the right, a
        panel a method), 'cost' (value against costs, at the greatest length), 'calibration' (rows
        "realised" against rows "predicted").
      log: the axis of `across` is logarithmic. intervals: tables tell them.
      better: which way is better; "" for neither.
    """

    title: str
    across: str
    unit: str
    split: str | None = None
    pictures: tuple[str, ...] = ()
    log: bool = False
    intervals: bool = True
    better: str = "higher"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def cells(records: Iterable[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Records that are defined, by method and these facts; those that lack one are left out."""
    found: dict[tuple, list[dict]] = {}
    for record in records:
        if record["defined"] and all(record.get(key) is not None for key in keys):
            where = (record["method"], *(record[key] for key in keys))
            found.setdefault(where, []).append(record)
    return found


def share_rows(
    records: Sequence[dict],
    view: str,
    unit: str,
    measure: str,
    keys: Sequence[str],
    seed: int,
    group: str | None = None,
) -> list[dict]:
    """Mean of a measure between 0 and 1, a row for each method and value of the keys; records that
    are alike in `group`, if that is given, count as one."""
    rows = []
    for (method, *values), members in cells(records, *keys).items():
        told = [r for r in members if r.get(measure) is not None]
        if told:
            some = np.array([r[measure] for r in told], float)
            groups = np.array([r[group] for r in told]) if group else None
            where = dict(zip(keys, values, strict=True))
            rows.append(row(view, method, unit, share(some, seed, groups), len(some), **where))
    return rows


def share(values: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Interval:
    """Wilson's interval of hits, the bootstrap's of scores between; within 0 and 1."""
    if np.isin(values, (0, 1)).all():
        return proportion(values, groups)
    return within_one(interval(values, groups, seed))


def within_one(found: Interval) -> Interval:
    """What a share can be, of what an interval says."""
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def group_rows(
    records: Sequence[dict],
    view: str,
    unit: str,
    keys: Sequence[str],
    value: Callable[[dict], tuple[float, float] | None],
    seed: int,
) -> list[dict]:
    """sum(top) / sum(bottom) of what `value` says of each record, drawn by whole groups."""
    rows = []
    for (method, *values), members in cells(records, *keys).items():
        pairs = [(value(record), record["group"]) for record in members]
        told = [(pair, group) for pair, group in pairs if pair is not None]
        if len(told) < len(members) or len({group for _, group in told}) < 2:
            continue
        (top, bottom), groups = np.transpose([p for p, _ in told]), np.array([g for _, g in told])
        where = dict(zip(keys, values, strict=True))
        found = ratio(top, bottom, groups, seed)
        found = within_one(found) if unit == "share" else found
        many = {"groups": len(set(groups))}
        rows.append(row(view, method, unit, found, len(told), **where, **many))
    return rows


def row(view: str, what: str, unit: str, found: Interval, n: int, **where) -> dict:
    """One number of a view: of a method, or of something else that a suite names."""
    bound = {"sees_future": True} if what in METHODS and METHODS[what].sees_future else {}
    numbers = {"value": found.value, "unit": unit, "low": found.low, "high": found.high, "n": n}
    return {"view": view, "what": what, **where, **numbers, **bound}
