"""Makes the form of a training run that is shipped: one step, bfloat16, with tokenizer and card.

    python -m experiments.ship --workdir=runs/pico --corpus=runs/corpus --out=data/checkpoints/pico

The `config` item gains `trained`: for every part, what it was measured by at the end of its
training and what the same measure gives without that training. A part that is no better than its
control is called untrained wherever its results are shown.
"""

from __future__ import annotations

import json
from pathlib import Path

from experiments import entry
from mctx import checkpoint
from mctx.errors import UserError
from mctx.opened import ITEMS
from mctx.telemetry import read_scalars

# By phase: the measure, its untrained control, and whether more is better.
JUDGED = {
    "base": ("eval/nll_1024_2047", "eval/nll_0_128", False),  # context must help
    "gist": ("eval/nll_lod1", "eval/nll_none", False),  # gists must beat nothing
    "lens": ("eval/captured_lens", "eval/captured_random", True),
    "mof": ("eval/nll", "eval/average", False),  # the merger must beat the average
}


def judgements(workdir: Path) -> dict[str, dict]:
    """For each phase: measure, value, control and `better`, from its last evaluation."""
    found = {}
    for phase, (measure, control, more) in JUDGED.items():
        rows = [row for row in read_scalars(workdir / phase) if measure in row]
        if not rows:
            raise UserError(f"{workdir / phase} holds no {measure}: train phase '{phase}' there.")
        value, base = rows[-1][measure], rows[-1][control]
        found[phase] = {
            "measure": measure.removeprefix("eval/"),
            "value": value,
            "control": base,
            "better": value > base if more else value < base,
            "steps": rows[-1]["step"],
            "minutes": _minutes(workdir / phase),
        }
    return found


def _minutes(directory: Path) -> float:
    """From the first to the last line of a phase's metrics."""
    times = [row["time"] for row in read_scalars(directory)]
    return round((max(times) - min(times)) / 60, 1)


def untrained(config: dict) -> dict[str, str]:
    """By part, why it is no better than its control; parts that are better are left out."""
    return {
        part: f"{j['measure']} {j['value']:.4g} against {j['control']:.4g} without training"
        for part, j in config.get("trained", {}).items()
        if not j["better"]
    }


def card(config: dict, manifest: dict, counts: dict[str, int], hardware: str) -> str:
    """The model card, in Markdown."""
    tokens = sum(p["tokens"] for p in manifest["packages"])
    lines = [
        "# Model card",
        "",
        "A small frozen base with GistNet, LensNet, router and merger, for the quickstart of",
        "MegaContext. Apache-2.0, like the code. It continues Python and little else: it is here",
        "to show what focus does to a base that uses context, not to write programs.",
        "",
        f"Data: {tokens:,} tokens of Python from the {len(manifest['packages'])} packages below,",
        "vendored, generated and near-duplicate files left out; `manifest.json` has their hashes,",
        "`sketch.npy` recognises near-copies of their files.",
        "",
        f"Hardware: {hardware}.",
        "",
        "| part | parameters | steps | minutes | measured by | reached | without training |",
        "|---|---|---|---|---|---|---|",
    ]
    for (phase, j), (item, count) in zip(config["trained"].items(), counts.items(), strict=True):
        lines.append(
            f"| {item} ({phase}) | {count:,} | {j['steps']} | {j['minutes']} "
            f"| {j['measure']} | {j['value']:.4g} | {j['control']:.4g} |"
        )
    names = ", ".join(f"{p['name']}=={p['version']}" for p in manifest["packages"])
    return "\n".join([*lines, "", f"Trained on: {names}.", ""])


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.ship", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of all four phases")
    parser.add_argument("--corpus", type=Path, required=True, help="what they were trained on")
    parser.add_argument("--out", type=Path, required=True, help="a new checkpoint directory")
    parser.add_argument("--hardware", default="not recorded", help="for the card: one H100, …")
    parser.add_argument("--json", type=Path, help="a result file of what the phases reached")
    arguments = parser.parse_args()
    config = ship(arguments.workdir, arguments.corpus, arguments.out, arguments.hardware)
    if arguments.json:
        rows = result_rows(config["trained"])
        entry.write_result(arguments.json, entry.command(parser, None), 0, rows, name="pico")


def ship(workdir: Path, corpus: Path, out: Path, hardware: str) -> dict:
    """See the module's docstring; returns the checkpoint's config."""
    items, config = checkpoint.load_items(workdir, ITEMS)
    config["trained"] = judgements(workdir)
    source = corpus / "train" if (corpus / "train").exists() else corpus
    names = ("tokenizer.json", "manifest.json", "sketch.npy")
    try:
        files = {name: (source / name).read_bytes() for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: give the corpus trained on.") from error
    counts = {item: _count(items[item]) for item in ITEMS}
    text = card(config, json.loads(files["manifest.json"]), counts, hardware)
    checkpoint.save_bundle(out, items, config, {**files, "CARD.md": text.encode()})
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
