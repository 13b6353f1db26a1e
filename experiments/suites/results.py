"""The result file of a suite of trials: rows, costs, focus, and all that remakes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments import entry
from experiments.suites import Asking, Suite, trials
from experiments.suites.below import below_random
from experiments.suites.records import Log, digest, fingerprints, name_of
from experiments.suites.segments import Segments
from experiments.suites.trials import Plan
from mctx.errors import UserError
from mctx.opened import Opened

SEGMENTS = "segments.jsonl"  # a record for every suite and text of those that measure segments


def measured(
    name: str, suite: Suite, opened: Opened, segments: Segments, seed: int, out: Path
) -> tuple[dict[str, list[dict]], dict]:
    """Rows of a suite of segments by name of result, and what a result says of their record.

    They are kept in OUT/segments.jsonl: an interrupted run, made again, goes on behind it. Rows
    are made of measurements by this code, so that of another commit does not find them, nor does
    code that no commit holds.
    """
    commit = entry.git_commit()
    of = fingerprints({i: opened.params[i] for i in suite.items})
    settings = {"fingerprints": of, "model": repr(opened.model), "commit": commit}
    log = Log(out / SEGMENTS, settings, commit=commit)
    drawn = segments.units.tolist()  # what stands together in an interval
    facts = {"suite": name, "seed": seed, "text": digest(segments.tokens), "units": drawn}
    committed = commit != "unknown" and not commit.endswith("+")
    if not committed or log.get(facts) is None:
        log.add(facts, suite.measure(opened, segments, seed))
    record = log.get(facts)
    told = {"file": SEGMENTS, "settings": name_of(settings), "commits": [record["commit"]]}
    return record["found"], told


def ask(
    name: str,
    suite: Asking,
    plan: Plan,
    command: str,
    out: Path,
    notes: Sequence[str],
    label: str | None = None,
) -> Path:
    """Runs a suite's trials, or what is left of them, and writes OUT/NAME.json, or
    OUT/NAME-LABEL.json; returns it."""
    settings = settings_of(plan)
    commit = entry.git_commit()
    log = Log(out / f"{name}.jsonl", settings, commit=commit)
    costs = Log(out / "costs.jsonl", settings | {"machine": entry.machine()}, commit=commit)
    facts = suite.trials(plan)
    records = trials.run(name, facts, suite.make, plan, log, costs)
    rows = suite.rows(records, plan)
    if not rows:
        raise UserError(f"{name}: no method is defined at these lengths: name others.")
    known = [costs.get(trials.cost_facts(one, method)) for one in facts for method in plan.methods]
    told = labelled(name, label)
    path = out / f"{told}.json"
    entry.write_result(
        path,
        command,
        plan.seed,
        rows,
        name=told,
        interval=suite.interval,
        notes=[*suite.notes(records), *notes, *below_random(records, *suite.measure, plan.seed)],
        views={key: view.to_dict() for key, view in suite.views.items()},
        costs=cost_rows(facts, plan, costs),
        focus=focus(records),
        records={
            "file": log.path.name,
            "settings": name_of(settings),
            "count": len(records),
            "commits": sorted({record["commit"] for record in [*records, *filter(None, known)]}),
        },
        settings=settings,
        plan=plan_facts(plan),
    )
    return path


def labelled(name: str, label: str | None) -> str:
    """The name of a result, which tells it from others of its suite."""
    return f"{name}-{label}" if label else name


def settings_of(plan: Plan) -> dict:
    """What every record of a plan depends on; what differs between records is in their facts."""
    protocol = dataclasses.asdict(plan.protocol)
    del protocol["budget"]
    of, model = fingerprints(plan.opened.params), repr(plan.opened.model)
    return {"fingerprints": of, "protocol": protocol, "model": model}


def plan_facts(plan: Plan) -> dict:
    kept = ("methods", "lengths", "depths", "samples", "budgets", "distractors", "tail")
    facts = {key: getattr(plan, key) for key in kept}
    return facts | {"budget": plan.protocol.budget, "block": plan.block}


def cost_rows(facts: Sequence[dict], plan: Plan, costs: Log) -> list[dict]:
    """What each method costs at each length: the fields of `experiments.methods.Cost`."""
    seen = {name_of(trials.cost_facts(one, "")): one for one in facts}.values()
    asked = [trials.cost_facts(one, method) for one in seen for method in plan.methods]
    found = [(where, costs.get(where)["found"]) for where in asked]
    return [
        {"what": where["method"], "length": where["length"], "budget": where["budget"], **cost}
        for where, cost in found
        if cost is not None
    ]


def focus(records: Sequence[dict]) -> list[dict]:
    """What every method showed as tokens in one sample of each family, at the greatest length."""
    shown = [record for record in records if record.get("blocks") is not None]
    longest = max((record["length"] for record in shown), default=0)
    kept = ("method", "family", "length", "seed", "blocks", "support", "in_focus", "exact")
    first: dict[str, str] = {}
    for record in shown:
        if record["length"] == longest and record["support"]:
            first.setdefault(record["family"], record["text"])
    return [
        {key: record[key] for key in kept}
        for record in shown
        if first.get(record["family"]) == record["text"]
    ]
