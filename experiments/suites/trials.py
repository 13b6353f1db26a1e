"""Trials: one after the other, every method on each; what is done already is not done again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.tasks.sample import Haystack
from experiments.methods import METHODS, Protocol, Scorer
from experiments.suites.records import Log
from experiments.suites.texts import Stream
from mctx.opened import Opened
from mctx.telemetry import ProgressBar
from mctx.tree.ingest import Reader
from mctx.tree.store import Tree


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a suite is asked to do.

    Attributes:
      protocol: budget, sinks, recent blocks: what all methods share.
      methods: names of METHODS.
      lengths: tokens of history, whole blocks.
      depths: where the first support stands, 0..1.
      samples: of each cell; of `long_nll`, segments of each package or author.
      budgets: more budgets, at the shortest length.
      distractors: how many look-alikes.
      tail: tokens that are scored, in `long_nll`.
      haystack: what tasks are hidden in; None for what each family has.
      streams: texts of `long_nll`.
      reader: what all histories are read by, so that its programs are compiled once.
    """

    opened: Opened
    reader: Reader
    protocol: Protocol
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 1
    budgets: tuple[int, ...] = ()
    distractors: tuple[int, ...] = (0, 2, 4, 8, 16)
    tail: int = 128
    haystack: Haystack | None = None
    streams: tuple[Stream, ...] = ()

    @property
    def block(self) -> int:
        return self.opened.model.gist.block

    @property
    def seed(self) -> int:
        return self.protocol.seed


class Trial(NamedTuple):
    """One history and what is asked behind it, the same for every method.

    Attributes:
      history: makes int32 tokens, whole blocks, or a tree; called when it is needed.
      tail: int32, the token before what is asked for, and that; for costs and focus maps.
      support: token ranges of the history that hold what must be known.
      text: digest of all that is read.
      ask: what a method makes of it, as a record; None where the method is not defined.
    """

    history: Callable[[], np.ndarray | Tree]
    tail: np.ndarray
    support: tuple[tuple[int, int], ...]
    text: str
    ask: Callable[[Scorer, str], dict | None]


def run(
    name: str,
    facts: Sequence[dict],
    make: Callable[[Plan, dict], Trial],
    plan: Plan,
    log: Log,
    costs: Log,
) -> list[dict]:
    """Measures what `log` does not have yet; returns a record for every trial and method.

    Returns:
      {"method", the trial's facts, "text", what `Trial.ask` found}; "defined" False where the
      method is not.
    """
    bar = ProgressBar(name, len(facts))
    bar.begin(0)
    records, began, fresh = [], time.perf_counter(), 0
    for done, one in enumerate(facts):
        trial = make(plan, one)
        known = {"suite": name, **one, "text": trial.text}
        asked = {method: {**known, "method": method} for method in plan.methods}
        costed = {method: cost_facts(one, method) for method in plan.methods}
        left = [method for method in plan.methods if log.get(asked[method]) is None]
        dear = [method for method in plan.methods if costs.get(costed[method]) is None]
        if left or dear:
            scorer = Scorer(plan.opened, trial.history(), protocol_of(plan, one), plan.reader)
            for method in plan.methods:
                if method in left:
                    log.add(asked[method], trial.ask(scorer, method))
                if method in dear:
                    cost = scorer.cost(method, trial.tail, trial.support)
                    costs.add(costed[method], None if cost is None else cost._asdict())
            fresh += 1
            bar.report(done + 1, _remaining(began, fresh, len(facts) - done - 1, one))
        bar.advance(done + 1)
        records += [flat(log.get(facts)) for facts in asked.values()]
    bar.close()
    return records


def protocol_of(plan: Plan, facts: dict) -> Protocol:
    return dataclasses.replace(plan.protocol, budget=facts["budget"])


def cost_facts(facts: dict, method: str) -> dict:
    """Costs depend on how long the history is and on nothing else that a trial says."""
    return {"length": facts["length"], "budget": facts["budget"], "method": method}


def flat(record: dict) -> dict:
    """A record with its facts and what was found side by side."""
    found = record["found"]
    made = {"defined": found is not None, "commit": record["commit"]}
    return {**record["facts"], **made, **(found or {})}


def available(opened: Opened, names: Sequence[str]) -> tuple[str, ...]:
    """Those methods whose parts the checkpoint has."""
    return tuple(name for name in names if set(METHODS[name].items) <= set(opened.params))


def _remaining(began: float, fresh: int, left: int, facts: dict) -> str:
    seconds = (time.perf_counter() - began) / fresh * left
    where = facts.get("family") or facts.get("group") or ""
    return f"{where} {facts['length']:,} tokens, {seconds / 60:.1f} min left".strip()
