"""Makes the form of a training run that is shipped: one step, bfloat16, with tokenizer and card.

    python -m experiments.ship --workdir=runs/pico --corpus=runs/corpus --out=data/checkpoints/pico
        [--init=DIR] [--hardware="one H200"]

With `--init`, a checkpoint that was shipped and that the phases of the workdir were trained on
(`experiments.train --config.init=DIR`), the parts that the workdir lacks are those of DIR, with
what was said of them there; what was trained on is then DIR's and the corpus. A phase is trained on
the parts before it, so what comes after a new part must be new too.

The `config` item gains `trained`: for every part, what it was measured by at the end of its
training and what the same measure gives without that training. A part that is no better than its
control is called untrained wherever its results are shown. A base that was imported was trained
elsewhere: nothing is said of it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.provenance import GENERATED, provenance, shipped_provenance, union
from experiments import entry
from experiments.train import load_trained
from mctx import checkpoint
from mctx.errors import UserError
from mctx.models.wrapped import Wrapped
from mctx.opened import ITEMS
from mctx.telemetry import METRICS_FILE, read_scalars
from mctx.tokenizer import Tokenizer

NOT_RECORDED = "not recorded"
# By phase, each trained on the parts of all before it: the measure, its untrained control, and
# whether more is better.
JUDGED = {
    "base": ("eval/nll_1024_2047", "eval/nll_0_128", False),  # context must help
    "gist": ("eval/nll_lod1", "eval/nll_none", False),  # gists must beat nothing
    "lens": ("eval/captured_lens", "eval/captured_random", True),
    "mof": ("eval/nll", "eval/average", False),  # the merger must beat the average
}
SPAN = re.compile(r"eval/nll_(\d+)_\d+")  # of positions in a base's window

ITEM = {phase: item for item, phase in checkpoint.TRAINED_BY.items()}


def judgements(workdir: Path, phases: Iterable[str], hardware: str) -> dict[str, dict]:
    """For each phase: measure, value, control and `better`, from its last evaluation.

    A base that was imported, so without a state of its training, is left out.
    """
    found = {}
    for phase in phases:
        if phase == "base" and not checkpoint.holds(workdir / phase, "train"):
            continue
        told = (workdir / phase / METRICS_FILE).is_file()
        logged = read_scalars(workdir / phase) if told else []
        _, control, more = JUDGED[phase]
        measure = measure_of(phase, logged)
        rows = [row for row in logged if measure in row]
        if not rows:
            raise UserError(f"{workdir / phase} holds no {measure}: train phase '{phase}' there.")
        newest = checkpoint.latest_step(workdir / phase, ITEM[phase])
        if newest != rows[-1]["step"]:
            raise UserError(
                f"phase '{phase}' of {workdir} was judged at step {rows[-1]['step']} and stopped "
                f"at {newest}: finish it there."
            )
        value, base = rows[-1][measure], rows[-1][control]
        if value is None or base is None:
            raise UserError(
                f"the last evaluation of phase '{phase}' of {workdir} has no number for "
                f"{measure}: train it again, with a lower learning rate if it diverged."
            )
        found[phase] = {
            "measure": measure.removeprefix("eval/"),
            "value": value,
            "control": base,
            "better": value > base if more else value < base,
            "steps": rows[-1]["step"],
            "minutes": round(seconds(logged) / 60, 1),
            "hardware": hardware,
        }
    return found


def measure_of(phase: str, rows: list[dict]) -> str:
    """What a phase is judged by; a base by the last positions of its window, however long."""
    spans = {int(span[1]): name for row in rows for name in row if (span := SPAN.fullmatch(name))}
    return spans[max(spans)] if phase == "base" and spans else JUDGED[phase][0]


def seconds(rows: list[dict]) -> float:
    """How long the steps took that a phase's metrics tell of, each at the speed of its report.

    Neither compiling, evaluations nor the time between a stop and its resumption are counted.
    """
    reports = [(row["step"], row["steps_per_s"]) for row in rows if row.get("steps_per_s")]
    before = [0, *(step for step, _ in reports)]
    return sum((step - last) / speed for (step, speed), last in zip(reports, before, strict=False))


def shipped_judgements(init: Path, config: dict, phases: Iterable[str]) -> dict[str, dict]:
    """What a shipped checkpoint says of the parts that are taken from it."""
    known = config.get("trained", {})
    told = [phase for phase in phases if phase != "base" or phase in known or not known]
    missing = [phase for phase in told if phase not in known]
    if missing:
        raise UserError(
            f"{init} does not say what its {missing[0]} reached: give a checkpoint that "
            "`python -m experiments.ship` made."
        )
    return {phase: {"hardware": NOT_RECORDED, **known[phase]} for phase in told}


def check_tokenizer(
    workdir: Path, own: tuple[str, ...], corpus: Path, tokenizer: Tokenizer
) -> None:
    """Raises UserError where one of the phases `own` was trained with another tokenizer."""
    for phase in own:
        path = workdir / phase / "tokenizer.json"
        if path.is_file() and Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{corpus} has another tokenizer than phase '{phase}' of {workdir}: give the "
                "corpus that it was trained on."
            )


def check_fit(workdir: Path, own: tuple[str, ...], init: Path | None) -> None:
    """Raises UserError where a part was trained on another one than that which is shipped with it.

    Told by what each part's `config` says of the parts it was trained on: their shape, and of those
    of `init` what they reached; and within the workdir by the order of time.

    Args:
      own: phases whose parts are the workdir's; the others are of `init`.
    """
    places = {phase: workdir if phase in own else init for phase in JUDGED}
    saved = {phase: checkpoint.saved_with(place, ITEM[phase]) for phase, place in places.items()}
    order = tuple(JUDGED)
    for phase in order:
        config, when = saved[phase]
        if phase in own and "lora" in config:
            raise UserError(
                f"phase '{phase}' of {workdir} was trained on a base with its LoRA, and none is "
                "shipped: train it with --config.with_lora=False."
            )
        for needed in order[: order.index(phase)]:
            there, then = saved[needed]
            if phase not in own and needed in own:
                raise UserError(
                    f"{workdir} has a new {needed}, which the {phase} of {init} was not trained "
                    f"with: train phase '{phase}' in {workdir} too."
                )
            fits = _shape(config, needed) == _shape(there, needed)
            if phase in own and needed in own:
                fits &= when >= then
            elif phase in own:
                fits &= _reached(config, needed) == _reached(there, needed)
            if not fits:
                raise UserError(
                    f"the {phase} of {workdir} was trained on another {needed} than that of "
                    f"{places[needed]}: train phase '{phase}' again, on that one."
                )


def _shape(config: dict, part: str) -> tuple:
    """What a `config` item says of the shape of a part; settings that it lacks are as ever."""
    model = Wrapped.from_dict(config)
    return {"base": (model.base,), "gist": (model.gist, model.window), "lens": (model.lens,)}[part]


def _reached(config: dict, phase: str) -> dict:
    told = config.get("trained", {}).get(phase, {})
    return {name: value for name, value in told.items() if name != "hardware"}


def untrained(config: dict) -> dict[str, str]:
    """By part, why it is no better than its control; parts that are better are left out."""
    return {
        part: f"{j['measure']} {j['value']:.4g} against {j['control']:.4g} without training"
        for part, j in config.get("trained", {}).items()
        if not j["better"]
    }


OWN_BASE = (
    "A small frozen base with GistNet, LensNet, router and merger, for the quickstart of",
    "MegaContext. Apache-2.0, like the code. It continues what it was trained on and little",
    "else: it is here to show what focus does to a base that uses context, not to write.",
)
IMPORTED_BASE = (
    "An imported base, frozen, with GistNet, LensNet, router and merger of MegaContext. The base",
    "has the licence that it came with, the other parts are Apache-2.0, like the code. What the",
    "base was trained on is not told here, only what the other parts were.",
)


def card(config: dict, manifest: dict, counts: dict[str, int]) -> str:
    """The model card, in Markdown."""
    domains: dict[str, list[dict]] = {}
    for package in manifest["packages"]:
        domains.setdefault(package["domain"], []).append(package)
    amounts = ", ".join(
        f"{sum(p['tokens'] for p in found):,} tokens of {_listed(name, found)}"
        for name, found in domains.items()
    )
    lines = [
        "# Model card",
        "",
        *(OWN_BASE if "base" in config["trained"] else IMPORTED_BASE),
        "",
        f"Data: {amounts}. Vendored, generated and near-duplicate",
        "texts are left out; `manifest.json` has the hashes of the others, `sketch.npy` recognises",
        "near-copies of them.",
        "",
        f"Hardware: {_hardware(config['trained'])}.",
        "",
        "| part | parameters | steps | minutes | measured by | reached | without training |",
        "|---|---|---|---|---|---|---|",
    ]
    for item, count in counts.items():
        phase = checkpoint.TRAINED_BY[item]
        told = ["imported", *["—"] * 4]
        if phase in config["trained"]:
            j = config["trained"][phase]
            told = [j["steps"], j["minutes"], j["measure"]]
            told += [f"{j['value']:.4g}", f"{j['control']:.4g}"]
        lines.append(f"| {item} ({phase}) | {count:,} | {' | '.join(map(str, told))} |")
    for name, found in domains.items():
        if name not in GENERATED:
            names = dict.fromkeys(map(_named, found))  # of what was trained on twice, once
            lines += ["", f"Trained on ({name}): {'; '.join(names)}."]
    return "\n".join([*lines, ""])


def _hardware(trained: dict[str, dict]) -> str:
    """`one H200`; where the parts differ, `two H200 (base, gist); one H200 (lens)`."""
    parts: dict[str, list[str]] = {}
    for phase, judged in trained.items():
        parts.setdefault(judged.get("hardware", NOT_RECORDED), []).append(phase)
    if len(parts) == 1:
        return next(iter(parts))
    return "; ".join(f"{hardware} ({', '.join(phases)})" for hardware, phases in parts.items())


def _listed(domain: str, packages: list[dict]) -> str:
    if domain in GENERATED:
        return f"{domain}, generated by seed"
    count = len(set(map(_named, packages)))
    return f"{domain} ({count} {'packages' if packages[0]['version'] else 'titles'})"


def _named(package: dict) -> str:
    """`name==version` of a package, `Title by Author` of a book."""
    if package["version"]:
        return f"{package['name']}=={package['version']}"
    author, slash, title = package["name"].partition("/")
    return f"{title} by {author}" if slash else author


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.ship", description=__doc__)
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="of all four phases, or of the last of them")
    add("--corpus", type=Path, required=True, help="what they were trained on")
    add("--init", type=Path, help="a shipped checkpoint, for the parts of the other phases")
    add("--out", type=Path, required=True, help="a new checkpoint directory")
    add("--hardware", default=NOT_RECORDED, help="what the workdir was trained on: one H100, …")
    add("--json", type=Path, help="a result file of what the phases reached")
    given = parser.parse_args()
    config = ship(given.workdir, given.corpus, given.out, given.hardware, given.init)
    if given.json:
        rows = result_rows(config["trained"])
        entry.write_result(given.json, entry.command(parser, None), 0, rows, name="pico")


def ship(
    workdir: Path, corpus: Path, out: Path, hardware: str, init: Path | None = None
) -> dict:
    """See the module's docstring; returns the checkpoint's config."""
    own = tuple(p for p in JUDGED if init is None or checkpoint.holds(workdir, ITEM[p]))
    rest = tuple(phase for phase in JUDGED if phase not in own)
    if not own:
        raise UserError(f"{workdir} holds no phase that was trained: there is nothing new to ship.")
    check_fit(workdir, own, init)
    known, origin = {}, provenance(corpus)
    if rest:
        known = shipped_judgements(init, checkpoint.saved_with(init, ITEM[rest[0]])[0], rest)
        origin = union(shipped_provenance(init), origin)
    known |= judgements(workdir, own, hardware)
    manifest, sketch, tokenizer = origin
    check_tokenizer(workdir, own, corpus, Tokenizer(tokenizer))
    items, config = load_trained(ITEMS, workdir, init)
    config["trained"] = {phase: known[phase] for phase in JUDGED if phase in known}
    counts = {item: _count(items[item]) for item in ITEMS}
    packed = io.BytesIO()
    np.save(packed, sketch)
    files = {
        "tokenizer.json": tokenizer.encode(),
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        "sketch.npy": packed.getvalue(),
        "CARD.md": card(config, manifest, counts).encode(),
    }
    checkpoint.save_bundle(out, items, config, files)
    return config


def result_rows(trained: dict[str, dict]) -> list[dict]:
    """What each phase reached, as rows of a result file; one run, so no interval."""
    return [
        {
            "what": f"{phase}: {j['measure']}",
            "value": j["value"],
            "unit": "share" if "captured" in j["measure"] else "nats/token",
            "without training": j["control"],
            "steps": j["steps"],
            "minutes": j["minutes"],
        }
        for phase, j in trained.items()
    ]


def _count(tree) -> int:
    return sum(_count(x) for x in tree.values()) if isinstance(tree, dict) else tree.size


if __name__ == "__main__":
    entry.run(main)
