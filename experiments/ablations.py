"""Training runs that differ in their settings, as one table.

    python -m experiments.ablations RUNS… --measures recovered_lod1,recovered_lod2 --json FILE
        [--by-step] [--name NAME] [--hardware "one H200"]
    python -m experiments.report FILE --results RESULTS.md

A RUN is the workdir of one trained phase, or its DIR/<phase> where the workdir has several; all
that is read are `config.json` and `metrics.jsonl` there. The first is the reference. Runs that
differ in nothing but `train.seed` are one row: the mean of every measure, and the least and the
most of the seeds; nothing where a seed has no number, one that diverged say. A row is called by the
overrides that make the reference's command its own. With --by-step there is one for every step at
which it was evaluated: a curve. `seconds` are those of the steps alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import entry
from experiments.ship import seconds
from experiments.train import CONFIG_FILE
from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE, read_scalars

SEED = "train.seed"
REFERENCE = "reference"


class Run(NamedTuple):
    """Attributes:
    folder: of the phase. seed: its `train.seed`.
    settings: the others, by dotted name.
    rows: of its metrics, in order of steps.
    """

    folder: Path
    seed: int
    settings: dict[str, Any]
    rows: list[dict]


def load_run(path: Path) -> Run:
    """Raises UserError where `path` is no run, holds several, or the run is not at its end."""
    inside = [path, *sorted(path.iterdir())] if path.is_dir() else []
    folders = [folder for folder in inside if (folder / METRICS_FILE).is_file()]
    if not folders:
        raise UserError(f"{path} is no training run: name a --workdir of `experiments.train`.")
    if len(folders) > 1:
        raise UserError(f"{path} holds several phases: name one of them, as {folders[-1]}.")
    folder = folders[0]
    try:
        settings = flat(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} cannot be read: train the run again, or go on with its "
            "command, which writes that file."
        ) from error
    rows = read_scalars(folder)
    done, wanted = rows[-1]["step"] if rows else 0, settings["train.steps"]
    if done != wanted:
        raise UserError(f"{folder} is at step {done} of {wanted}: go on with its command first.")
    return Run(folder, settings.pop(SEED), settings, rows)


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested config by dotted name: {"train": {"seed": 1}} -> {"train.seed": 1}."""
    found = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same settings together, by seed; groups in the order of their first run.

    Raises UserError for runs of several phases, and for two of the same settings and seed.
    """
    first = runs[0]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.settings["phase"] != first.settings["phase"]:
            raise UserError(
                f"{run.folder} is a run of phase '{run.settings['phase']}', {first.folder} of "
                f"phase '{first.settings['phase']}': give a table to each phase."
            )
        group = groups.setdefault(json.dumps(run.settings, sort_keys=True), [])
        for other in group:
            if other.seed == run.seed:
                raise UserError(f"{other.folder} and {run.folder} are one run, of the same config "
                                "and seed: name one of them.")
        group.append(run)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


def overrides(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """What to add to the reference's command to train with these settings.

    A setting that only the reference has, one of another version, is told as None.
    """
    names = [*reference, *(name for name in settings if name not in reference)]
    differ = [name for name in names if settings.get(name) != reference.get(name)]
    return [f"{entry.PREFIX}{name}={_text(settings.get(name))}" for name in differ]


def _text(value: Any) -> str:
    """A value as `entry.parse` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        parts = [repr(_tuples(part)) for part in value]
        return ",".join(parts) if len(parts) > 1 else f"({''.join(f'{p},' for p in parts)})"
    return str(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def measured(run: Run, measure: str) -> float | None:
    """The last that a run says of a measure, of its evaluation or else of its steps.

    None where it says nothing, or that it was not finite.
    """
    names = (f"eval/{measure}", measure)
    told = (row[name] for name in names for row in reversed(run.rows) if name in row)
    return next(told, None)


def young(run: Run, measure: str) -> list[Run]:
    """The run as it was at every step at which its evaluation told of a measure."""
    steps = [row["step"] for row in run.rows if f"eval/{measure}" in row]
    return [run._replace(rows=[r for r in run.rows if r["step"] <= step]) for step in steps]


def row_of(runs: Sequence[Run], measures: Sequence[str], reference: Run) -> dict:
    """A row of a result file: `value` is the first measure, the others go by their names."""
    differs = overrides(runs[0].settings, reference.settings)
    row: dict[str, Any] = {"what": shlex.join(differs) or REFERENCE}
    for measure in measures:
        first = measure == measures[0]
        found = [measured(run, measure) for run in runs]
        whole = None not in found  # the mean of the others would be called the mean of all seeds
        row["value" if first else measure] = float(np.mean(found)) if whole else None
        if whole and len(found) > 1:
            low, high = ("low", "high") if first else (f"{measure}_low", f"{measure}_high")
            row |= {low: min(found), high: max(found)}
    return row | {
        "unit": measures[0],
        "steps": runs[0].rows[-1]["step"],
        "seconds": round(float(np.mean([seconds(run.rows) for run in runs]))),
        "seeds": ", ".join(str(run.seed) for run in runs),
    }


def table(runs: Sequence[Run], measures: Sequence[str], by_step: bool = False) -> list[dict]:
    """A row for each group of runs, or for each step at which these were evaluated.

    Raises UserError for a measure that no run has.
    """
    names = {key.removeprefix("eval/") for run in runs for row in run.rows for key in row}
    for measure in measures:
        if measure not in names:
            known = ", ".join(sorted(names - {"step", "time"}))
            raise UserError(f"no run has the measure '{measure}': there are {known}.")
    groups = grouped(runs)
    if by_step:  # seeds of one row are evaluated at the same steps
        ages = [zip(*(young(run, measures[0]) for run in group), strict=True) for group in groups]
        groups = [list(at) for group in ages for at in group]
    return [row_of(group, measures, runs[0]) for group in groups]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.ablations", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the first is the reference")
    add("--measures", required=True, help="as metrics name them less eval/: recovered_lod1/code,…")
    add("--by-step", action="store_true", help="a row for every evaluation")
    add("--json", type=Path, required=True, help="the result file to write")
    add("--name", default="ablations", help="of the table: <!-- table:NAME -->")
    add("--hardware", help="what the runs were trained on, in place of this machine")
    args = parser.parse_args(arguments)
    entry.check_file(args.json)
    runs = [load_run(path) for path in args.runs]
    measures = list(dict.fromkeys(filter(None, args.measures.split(","))))
    more = {"machine": args.hardware} if args.hardware else {}
    entry.write_result(
        args.json, entry.command(parser, arguments), runs[0].seed,
        table(runs, measures, args.by_step),
        name=args.name, interval="least and most of the seeds", **more,
    )


if __name__ == "__main__":
    entry.run(main)
