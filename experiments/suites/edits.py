"""A document is replaced: does the answer change with it?"""

import itertools
import os
from collections.abc import Sequence

import numpy as np

from data.tasks.edits import Edit
from data.tasks.sample import edit
from experiments.suites import Asking
from experiments.suites.asking import (
    SHARE,
    chance,
    measure_rows,
    measures,
    sample_facts,
    trial,
)
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View, share_rows
from mctx.errors import UserError
from mctx.tree.ingest import Ingest, tree_spec
from mctx.tree.store import Tree

STATES = ("before", "after")
DOCUMENTS = 8  # at most
ASKING_BLOCKS = 16  # of a question, at most
_numbers = itertools.count()


def trials(plan: Plan) -> list[dict]:
    return [
        sample_facts(plan, "edits", length, repeat, state=state, depth=depth(plan, repeat))
        for length in plan.lengths
        for repeat in range(plan.samples)
        for state in STATES
    ]


def depth(plan: Plan, repeat: int) -> float:
    """Which document is replaced."""
    return plan.depths[repeat % len(plan.depths)]


def make(plan: Plan, facts: dict) -> Trial:
    made = whole_windows(plan, facts)
    repeat = facts["seed"] - plan.seed
    if facts["state"] == "before":
        return trial(plan, made.before, repeat)
    return trial(plan, made.after, repeat, lambda: edited_tree(plan, made))


def whole_windows(plan: Plan, facts: dict) -> Edit:
    """An edit whose documents are whole ingest windows, so that a tree has no gap between them,
    and the question behind them; the history has the length asked for, and that of the question.
    """
    window, length = plan.opened.model.window, facts["length"]
    documents = min(DOCUMENTS, length // window)
    if documents < 2:
        raise UserError(f"An edit needs two documents of {window} tokens: raise --lengths.")
    body = length // (documents * window) * documents * window
    for asking in range(1, ASKING_BLOCKS + 1):
        made = edit(
            plan.opened.tokenizer,
            body + asking * plan.block + 1,
            facts["seed"],
            depth=facts["depth"],
            haystack=plan.haystack,
            block=plan.block,
            documents=documents,
        )
        if len(made.question) == asking * plan.block + 1:
            return made
    raise UserError(f"A question takes more than {ASKING_BLOCKS} blocks of {plan.block} tokens.")


def edited_tree(plan: Plan, made: Edit) -> Tree:
    """Documents are ingested, one is replaced where it stands, and the question follows."""
    spec = tree_spec(plan.opened.model, plan.opened.fingerprint)
    tree = Tree.create(f"memory://edits-{os.getpid()}-{next(_numbers)}", spec)
    ingest = Ingest(plan.reader, tree)
    for number, tokens in enumerate(made.documents):
        ingest.add_document(str(number), tokens)
    tree.commit()
    ingest.replace_document(str(made.replaced), made.replacement)
    for _ in ingest.feed(made.question[: len(made.question) // plan.block * plan.block]):
        pass  # staged as it is iterated over
    tree.commit()
    return tree


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    return [
        *measure_rows(records, "state", plan.seed, "length"),
        *share_rows(both(records), "followed", SHARE, "followed", ("length",), plan.seed),
        *share_rows(stale(records), "stale", SHARE, "stale", ("length",), plan.seed),
    ]


def both(records: Sequence[dict]) -> list[dict]:
    """One record for two: whether the answer was right before the edit and after it."""
    states: dict[tuple, dict[str, dict]] = {}
    for record in records:
        key = record["method"], record["length"], record["seed"]
        states.setdefault(key, {})[record["state"]] = record
    return [
        pair["after"] | {"followed": int(all(pair[state]["exact"] for state in STATES))}
        for pair in states.values()
        if set(pair) == set(STATES) and all(pair[state]["defined"] for state in STATES)
    ]


def stale(records: Sequence[dict]) -> list[dict]:
    """Records after the edit, with whether the old answer is thought more likely than the new."""
    ranked = [r for r in records if r["defined"] and r.get("nll_of_others")]
    after = [r for r in ranked if r["state"] == "after"]
    return [r | {"stale": int(np.less_equal(r["nll_of_others"][0], r["nll"]))} for r in after]


def notes(records: Sequence[dict]) -> list[str]:
    return [
        "The document is replaced in the tree: its own windows and the gists above them are made "
        "anew, and nothing else.",
        *chance(records),
    ]


VIEWS = {
    **measures("state", "length", line=False),
    "followed": View("Right before the edit and after it", "length", SHARE),
    "stale": View(
        "After the edit, the old answer is as likely as the new", "length", SHARE, better="lower"
    ),
}
SUITE = Asking(trials, make, VIEWS, rows, notes)
