"""RULER's families that need no download: how often the right thing is said, by length and depth.

Hsieh et al., 2024, arXiv:2404.06654; prompts in this project's words (`data.tasks`).
"""

from collections.abc import Sequence

from experiments.suites import Asking
from experiments.suites.asking import (
    SHARE,
    chance,
    measure_rows,
    measures,
    sample_facts,
    sample_of,
)
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View, share_rows

FAMILIES = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
)
EVERYWHERE = ("cwe", "fwe")  # what they ask for stands at no depth


def trials(plan: Plan) -> list[dict]:
    """Every family at every length, at one depth after the other."""
    return [
        sample_facts(plan, family, length, repeat, depth=depth(plan, family, repeat))
        for length in plan.lengths
        for repeat in range(plan.samples)
        for family in FAMILIES
    ]


def depth(plan: Plan, family: str, repeat: int) -> float | None:
    """Families begin at different depths, so that few repeats reach all depths together."""
    turn = repeat + FAMILIES.index(family)
    return None if family in EVERYWHERE else plan.depths[turn % len(plan.depths)]


def make(plan: Plan, facts: dict) -> Trial:
    return sample_of(plan, facts, facts["depth"])


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    exact = dict(unit=SHARE, measure="exact", seed=plan.seed)
    return [
        *measure_rows(records, "length", plan.seed),
        *share_rows(records, "family", keys=("family", "length"), **exact),
        *share_rows(records, "depth", keys=("depth", "length"), **exact),
    ]


def notes(records: Sequence[dict]) -> list[str]:
    return [
        "Depth 0 is the beginning of the history; common and frequent words stand at none.",
        "`handed` is given the blocks that hold what must be known: what the base does with "
        "perfect focus.",
        *chance(records),
    ]


VIEWS = {
    **measures("length", log=True),
    "family": View("Exact match by family", "family", SHARE, "length", intervals=False),
    "depth": View("Exact match by depth", "depth", SHARE, "length", ("heatmap",)),
}
SUITE = Asking(trials, make, VIEWS, rows, notes)
