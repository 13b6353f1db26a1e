"""Questions of one, two and three facts over a story, hidden in a text; scored by exact match."""

from collections.abc import Sequence

from experiments.suites import Asking
from experiments.suites.asking import chance, measure_rows, measures, sample_facts, sample_of
from experiments.suites.trials import Plan, Trial

FAMILIES = ("facts_1", "facts_2", "facts_3")


def trials(plan: Plan) -> list[dict]:
    return [
        sample_facts(plan, family, length, repeat)
        for length in plan.lengths
        for repeat in range(plan.samples)
        for family in FAMILIES
    ]


def make(plan: Plan, facts: dict) -> Trial:
    return sample_of(plan, facts, None)


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    return measure_rows(records, "length", plan.seed, "family")


def notes(records: Sequence[dict]) -> list[str]:
    return [
        "`--haystack=FOLDER` hides the story in books, as BABILong does; without it, in sentences "
        "that say nothing of it.",
        *chance(records),
    ]


SUITE = Asking(trials, make, measures("length", "family", log=True), rows, notes)
