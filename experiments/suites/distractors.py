"""Accuracy against the number of look-alike needles: does focus find the one that is asked for?"""

from collections.abc import Sequence

from experiments.suites import Asking
from experiments.suites.asking import chance, measure_rows, measures, sample_facts, sample_of
from experiments.suites.trials import Plan, Trial


def trials(plan: Plan) -> list[dict]:
    return [
        sample_facts(plan, "distractors", length, repeat, distractors=count)
        for length in plan.lengths
        for repeat in range(plan.samples)
        for count in plan.distractors
    ]


def make(plan: Plan, facts: dict) -> Trial:
    return sample_of(plan, facts, None, distractors=facts["distractors"])


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    return measure_rows(records, "distractors", plan.seed, "length")


def notes(records: Sequence[dict]) -> list[str]:
    return [
        "Look-alikes are needles whose keys share a word with the one that is asked for; needle "
        "and look-alikes stand anywhere.",
        *chance(records),
    ]


SUITE = Asking(trials, make, measures("distractors", "length"), rows, notes)
