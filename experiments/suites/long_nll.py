"""NLL of the same segments behind histories of every length, by package or author.

Each segment is a place in a long text. At every length and budget each method shows what it may
of the history before that place, and the same tokens are scored.
"""

from collections.abc import Sequence

import numpy as np

from experiments.methods import Scorer
from experiments.statistics import interval
from experiments.suites import Asking
from experiments.suites.records import digest
from experiments.suites.texts import Stream
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View, group_rows

NONE, FULL, REFERENCE = "recent", "full", "sinks+recent"
NATS, GAIN = "nats/token", "of full attention's gain"
DECIMALS = 5


def trials(plan: Plan) -> list[dict]:
    """Every segment at every length; at the shortest length, under every budget."""
    shortest = min(plan.lengths)
    budgets = {length: (plan.protocol.budget,) for length in plan.lengths}
    budgets[shortest] = tuple(sorted({plan.protocol.budget, *plan.budgets}))
    return [
        {
            "source": stream.source,
            "group": stream.group,
            "place": place,
            "length": length,
            "budget": budget,
        }
        for stream in plan.streams
        for place in places(stream, plan)
        for length in plan.lengths
        for budget in budgets[length]
    ]


def places(stream: Stream, plan: Plan) -> list[int]:
    """Where the segments of a text begin: behind the longest history, one drawn in each part."""
    first, beyond = max(plan.lengths), len(stream.tokens) - plan.tail + 1
    edges = np.linspace(first, beyond, plan.samples + 1).astype(int)
    rng = np.random.default_rng([plan.seed, *stream.group.encode()])
    return [
        int(rng.integers(low, max(high - plan.tail, low + 1)))
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def least_tokens(lengths: Sequence[int], samples: int, tail: int) -> int:
    """A text needs so many for its segments not to overlap."""
    return max(lengths) + 2 * samples * tail


def make(plan: Plan, facts: dict) -> Trial:
    wanted = facts["source"], facts["group"]
    (stream,) = (one for one in plan.streams if (one.source, one.group) == wanted)
    place = facts["place"]
    history = stream.tokens[place - facts["length"] : place]
    tail = stream.tokens[place : place + plan.tail]

    def ask(scorer: Scorer, method: str) -> dict | None:
        nll = scorer.nll(method, tail)
        if nll is None:
            return None
        each = [round(float(x), DECIMALS) for x in nll]
        return {"nll": float(np.mean(nll, dtype=np.float64)), "each": each}

    return Trial(lambda: history, tail, (), digest(history, tail), ask)


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    """NLL and its difference from sinks + recent by length; recovered by budget where defined."""
    seed, main = plan.seed, plan.protocol.budget
    told = compared(records)
    at_main = [record for record in told if record["budget"] == main]
    shortest = [r for r in told if r["length"] == min(plan.lengths) and gains(told, r, seed)]
    lengths = ("length", "source")
    return [
        *group_rows(at_main, "nll", NATS, lengths, lambda r: (r["nll"], 1.0), seed),
        *group_rows(at_main, "delta", NATS, lengths, lambda r: _pair(r.get("delta"), 1.0), seed),
        *group_rows(shortest, "recovered", GAIN, ("budget", "source"), _recovered, seed),
    ]


def compared(records: Sequence[dict]) -> list[dict]:
    """The defined records with what they are compared by: `delta` = NLL − that of sinks + recent,
    `gain` and `room` = NLL of the least recent window − that of the method and of full attention.
    """
    defined = [record for record in records if record["defined"]]
    nll = {(*_segment(r), r["length"], r["budget"], r["method"]): r["nll"] for r in defined}
    least = min((record["budget"] for record in defined), default=0)
    found = []
    for record in defined:
        where = *_segment(record), record["length"]
        reference = nll.get((*where, record["budget"], REFERENCE))
        none, full = nll.get((*where, least, NONE)), nll.get((*where, least, FULL))
        more = {} if reference is None else {"delta": record["nll"] - reference}
        if none is not None and full is not None:
            more |= {"gain": none - record["nll"], "room": none - full}
        found.append(record | more)
    return found


def gains(records: Sequence[dict], one: dict, seed: int) -> bool:
    """Whether full attention is clearly better than the least recent window, in this source."""
    mine = [
        r for r in records
        if r["method"] == FULL and r["source"] == one["source"] and r["length"] == one["length"]
        and r["budget"] == one["budget"] and "room" in r
    ]  # fmt: skip
    groups = np.array([r["group"] for r in mine])
    room = np.array([r["room"] for r in mine])
    return len(set(groups)) > 1 and interval(room, groups, seed).low > 0


def _segment(record: dict) -> tuple:
    return record["source"], record["group"], record["place"]


def _pair(top: float | None, bottom: float) -> tuple[float, float] | None:
    return None if top is None else (top, bottom)


def _recovered(record: dict) -> tuple[float, float] | None:
    return (record["gain"], record["room"]) if "room" in record else None


def notes(records: Sequence[dict]) -> list[str]:
    defined = [record for record in records if record["defined"]]
    least = min((record["budget"] for record in defined), default=0)
    groups = {(r["source"], r["group"]) for r in defined}
    named = ", ".join(sorted(group for _, group in groups))
    return [
        "The same tokens are scored at every length and budget. Full attention is told where the "
        "base was trained to read the whole history at once.",
        f"Recovered: 0 is the {least} most recent tokens, 1 is full attention; told where the "
        "latter is clearly better. Methods marked as bounds choose by the tokens they are scored "
        "on, or see everything.",
        f"{len(groups)} packages or authors: {named}.",
    ]


VIEWS = {
    "nll": View("NLL", "length", NATS, "source", ("lines",), log=True, better="lower"),
    "delta": View(
        "ΔNLL against sinks + recent", "length", NATS, "source", ("lines", "cost"), log=True,
        better="lower",
    ),
    "recovered": View("Recovered by budget", "budget", GAIN, "source", ("lines",), log=True),
}  # fmt: skip
SUITE = Asking(
    trials,
    make,
    VIEWS,
    rows,
    notes,
    needs=(FULL, NONE, REFERENCE),
    measure=("nll", "lower"),
    interval="bootstrap 95 % over packages or authors",
)
