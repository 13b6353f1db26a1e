"""Key–value pairs, one of them asked for: by its position ("lost in the middle").

Liu et al., 2024, arXiv:2307.03172.
"""

from collections.abc import Sequence

from experiments.suites import Asking
from experiments.suites.asking import chance, measure_rows, measures, sample_facts, sample_of
from experiments.suites.trials import Plan, Trial


def trials(plan: Plan) -> list[dict]:
    return [
        sample_facts(plan, "kv", length, repeat, position=position)
        for length in plan.lengths
        for repeat in range(plan.samples)
        for position in plan.depths
    ]


def make(plan: Plan, facts: dict) -> Trial:
    return sample_of(plan, facts, facts["position"])


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    return measure_rows(records, "position", plan.seed, "length")


def notes(records: Sequence[dict]) -> list[str]:
    return ["Position 0 is the first pair, 1 the last.", *chance(records)]


SUITE = Asking(trials, make, measures("position", "length"), rows, notes)
