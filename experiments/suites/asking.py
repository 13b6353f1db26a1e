"""How a sample of `data.tasks` is asked and scored, the same for every method and suite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from data.tasks.sample import Sample, make, rule_score
from experiments.methods import METHODS, Scorer
from experiments.suites.records import digest
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View, share_rows
from mctx.tokenizer import Tokenizer
from mctx.tree.store import Tree

MARGIN = 8  # tokens that are said beyond the right ones before RULER's rules look at the text
SHOWN = 0  # the repeat whose layouts are kept, for focus maps
HANDED = "handed"  # what the base does when it is given the right blocks


def trial(
    plan: Plan, sample: Sample, repeat: int, tree: Callable[[], Tree] | None = None
) -> Trial:
    """A sample as a trial; `tree` makes one that holds the prompt, where it is not just read."""
    block = plan.block
    last = len(sample.prompt) // block * block
    tail = np.concatenate([sample.prompt[last:], sample.continuation])
    ask = functools.partial(_ask, sample, plan.opened.tokenizer, repeat == SHOWN)
    read = digest(sample.prompt, sample.continuation, *sample.candidates)
    whole = tree or (lambda: sample.prompt[:last])
    return Trial(whole, tail, inside(sample.support, last), read, ask)


def inside(support: Sequence[tuple[int, int]], length: int) -> tuple[tuple[int, int], ...]:
    """What of the support lies in the first `length` tokens; the rest is in the question."""
    cut = [(start, min(stop, length)) for start, stop in support]
    return tuple((start, stop) for start, stop in cut if start < stop)


def sample_facts(plan: Plan, family: str, length: int, repeat: int, **more) -> dict:
    """What names a sample."""
    return {
        "family": family,
        "length": length,
        "budget": plan.protocol.budget,
        "seed": plan.seed + repeat,
        "haystack": plan.haystack.name if plan.haystack else None,
        **more,
    }


def sample_of(plan: Plan, facts: dict, depth: float | None, **parameters) -> Trial:
    """The sample that these facts name, as a trial; `parameters` of its family."""
    sample = make(
        facts["family"],
        plan.opened.tokenizer,
        facts["length"] + 1,
        facts["seed"],
        depth=depth,
        haystack=plan.haystack,
        block=plan.block,
        **parameters,
    )
    return trial(plan, sample, facts["seed"] - plan.seed)


def _ask(
    sample: Sample, tokenizer: Tokenizer, shown: bool, scorer: Scorer, method: str
) -> dict | None:
    """What is recorded of one method on one sample.

    exact: whether the greedy continuation is the right one, token for token. rule: RULER's score
    of the greedy text. first: whether the right continuation has the least NLL of the candidates.
    in_focus: share of the blocks with support that are shown as tokens. A method that sees the
    future is asked for `exact` alone: it would read each candidate before it ranks it.
    """
    last = sample.prompt[len(sample.prompt) // scorer.model.gist.block * scorer.model.gist.block :]
    support = inside(sample.support, len(sample.prompt) - len(last))
    count = len(sample.continuation)
    tail = np.concatenate([last, sample.continuation])
    answer = scorer.answer(method, tail, count, support)
    if answer is None:
        return None
    nll = float(answer.nll[-count:].sum())
    found = {"exact": int(answer.greedy[-count:].all()), "nll": nll, "tokens": count}
    found["right"] = tokenizer.decode(sample.continuation)
    found |= {"facts": sample.facts, "depth_reached": sample.depth}
    sees_future = METHODS[method].sees_future
    if not sees_future:
        found |= _said(sample, tokenizer, scorer, method, last, support, found)
        found |= _ranked(sample, scorer, method, last, support, nll)
    if shown or not sees_future:
        blocks = scorer.layout(method, tail if sees_future else None, support)
        found["in_focus"] = covered(support, blocks, scorer.model.gist.block)
        if shown:
            found |= {"blocks": runs(blocks), "support": support}
    return found


def _said(sample, tokenizer, scorer, method, last, support, found) -> dict:
    """RULER's score, and the text where it is not the right one."""
    if found["exact"]:
        return {"rule": 1.0, "said": found["right"]}
    count = len(sample.continuation) + MARGIN
    said = tokenizer.decode(scorer.continuation(method, last, count, support))
    answers = [tokenizer.decode(answer) for answer in sample.answers]
    return {"rule": rule_score(sample.rule, said, answers), "said": said}


def _ranked(sample, scorer, method, last, support, nll) -> dict:
    """The right continuation's place among the candidates, 1 the best; of equals the last."""
    if len(sample.candidates) < 2:
        return {}
    others = []
    for wrong in sample.candidates[1:]:
        answer = scorer.answer(method, np.concatenate([last, wrong]), len(wrong), support)
        others.append(float(answer.nll[-len(wrong) :].sum()))
    rank = 1 + sum(other <= nll for other in others)
    told = {"rank": rank, "first": int(rank == 1), "candidates": len(sample.candidates)}
    return {**told, "nll_of_others": others}


def covered(
    support: Sequence[tuple[int, int]], shown: np.ndarray, block: int
) -> float | None:
    """Share of the blocks with support that are among those shown; None without support."""
    wanted = {b for start, stop in support for b in range(start // block, -(-stop // block))}
    return len(wanted & set(shown.tolist())) / len(wanted) if wanted else None


def runs(blocks: np.ndarray) -> list[list[int]]:
    """Rising numbers as runs [first, beyond]."""
    if not len(blocks):
        return []
    parts = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1)
    return [[int(part[0]), int(part[-1]) + 1] for part in parts]


# -- what the suites of samples share -------------------------------------------------------

MEASURES = {  # view -> measure, title
    "accuracy": ("exact", "Exact match of the greedy continuation"),
    "rule": ("rule", "RULER's score of the greedy text"),
    "first": ("first", "The right continuation has the least NLL of the candidates"),
    "in_focus": ("in_focus", "Share of the supporting blocks that are shown as tokens"),
}
SHARE = "share"
OVERALL = View("Exact match, all samples", "length", SHARE, None, ("cost",))


def measures(across: str, split: str | None = None, line: bool = True, **how) -> dict[str, View]:
    """The four measures of a sample against one fact, the first drawn; where something splits
    them, also the first of all samples by length. `line`: `across` is a number."""
    told = {
        name: View(title, across, SHARE, split, **how) for name, (_, title) in MEASURES.items()
    }
    drawn = ("lines",) * line + ("cost",) * (split is None)
    told["accuracy"] = dataclasses.replace(told["accuracy"], pictures=drawn)
    return {"overall": OVERALL, **told} if split else told


def measure_rows(
    records: Sequence[dict], across: str, seed: int, split: str | None = None
) -> list[dict]:
    keys = (across,) if split is None else (across, split)
    # Samples of one seed share their text, whatever is asked of it.
    told = [("overall", "exact", ("length",), "seed")] if split else []
    told += [(name, measure, keys, None) for name, (measure, _) in MEASURES.items()]
    return [
        row
        for name, measure, by, group in told
        for row in share_rows(records, name, SHARE, measure, by, seed, group)
    ]


def chance(records: Sequence[dict]) -> list[str]:
    """What ranking by chance would reach, in words."""
    counts = [1 / r["candidates"] for r in records if r["defined"] and r.get("candidates")]
    return [f"First among the candidates by chance: {np.mean(counts):.3f}."] if counts else []
