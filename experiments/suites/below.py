"""Methods that do worse than blocks by chance: a bug, until somebody explains it.

Each is paired with `random` on the same trial, so what makes a text hard is in no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.statistics import interval
from experiments.tables import fact_text, number_text

RANDOM = "random"
LEAST = 5  # texts, packages or authors, that an interval is made of


def below_random(records: Sequence[dict], measure: str, better: str, seed: int) -> list[str]:
    """One note: which methods are clearly worse than random blocks, where, and by how much.

    No note without `random`, or where nothing is told of more than a few texts. Whole groups are
    drawn where records have one, else samples.
    """
    defined = [r for r in records if r["defined"] and r.get(measure) is not None]
    chance = {_trial(r): r[measure] for r in defined if r["method"] == RANDOM}
    pairs: dict[tuple, list[tuple]] = {}
    for r in defined:
        if r["method"] != RANDOM and _trial(r) in chance:
            where = r["method"], r.get("source", ""), r["length"], r["budget"]
            gain = (r[measure] - chance[_trial(r)]) * (1 if better == "higher" else -1)
            pairs.setdefault(where, []).append((gain, r.get("group", r["text"])))
    told = {where: _spread(some, seed) for where, some in pairs.items()}
    told = {where: found for where, found in told.items() if found is not None}
    if not told:
        return []
    worse = [_named(where, found) for where, found in told.items() if found.high < 0]
    if not worse:
        return ["No method is clearly worse than random blocks (paired, 95 %)."]
    return [f"Clearly worse than random blocks (paired, 95 %), by: {'; '.join(worse)}."]


def _trial(record: dict) -> tuple:
    return record["text"], record["budget"]


def _spread(pairs: Sequence[tuple], seed: int):
    gains, groups = np.array([gain for gain, _ in pairs]), np.array([g for _, g in pairs])
    return interval(gains, groups, seed) if len(set(groups)) >= LEAST else None


def _named(where: tuple, found) -> str:
    method, source, length, budget = where
    half = (found.high - found.low) / 2 or None
    value, low, high = (number_text(-x, half) for x in (found.value, found.high, found.low))
    place = ", ".join(filter(None, [source, fact_text("length", length), f"{budget:,} entries"]))
    return f"{method} {value} [{low}, {high}] ({place})"
