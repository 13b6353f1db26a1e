"""One table of our methods and the peers', on the same segments at the same budget.

    python -m experiments.peers.table DIR [--methods NAME …] [--json=DIR/peers.json]

DIR has `segments.npz` of `experiments.peers.segments` and `presses.json` of
`experiments.peers.presses`. Ours are scored here, by `experiments.methods`; every row is the NLL
of the same tokens. Rows of a peer are called `kvpress: NAME`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import entry
from experiments.methods import METHODS, Protocol, Scorer
from experiments.peers.presses import SAME, load_segments
from experiments.report import load_result
from experiments.statistics import interval
from experiments.suites.rows import recovered_rows
from experiments.tables import print_table
from mctx.errors import UserError
from mctx.opened import Opened, open_checkpoint

BOUNDS = ("recent", "full")  # nothing recovered, and everything: always in the table
AGAINST = "sinks+recent"  # what ΔNLL is told against
# Told which blocks hold the answer: plain text has no such blocks.
LEFT_OUT = ("handed",)


def ours(
    opened: Opened, given: dict[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Mean NLL of every segment's tail, [n], of the methods that are defined on all of them."""
    protocol = Protocol(budget=int(given["budget"]), seed=int(given["seed"]))
    reader, history = None, int(given["history"])
    found: dict[str, list[float]] = {name: [] for name in names}
    for tokens in given["tokens"]:
        scorer = Scorer(opened, tokens[:history], protocol, reader)
        reader = scorer.reader  # keeps nothing of a history, but its compiled programs
        for name in tuple(found):
            nll = scorer.nll(name, tokens[history:])
            if nll is None:
                del found[name]
            else:
                found[name].append(float(np.mean(nll)))
    return {name: np.array(nll) for name, nll in found.items()}


def load_presses(folder: Path, segments: int) -> dict:
    path = folder / "presses.json"
    if not path.is_file():
        raise UserError(f"there is no {path}: run experiments.peers.presses, with its own python.")
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(len(row["nll"]) != segments for row in found["presses"]):
        raise UserError(f"{path} is of other segments: run experiments.peers.presses again.")
    return found


def ensure_same(ours: np.ndarray, given: dict[str, np.ndarray], theirs: Sequence[float]) -> None:
    """Full attention is one number, whoever computes it: [n] each, by segment."""
    plain = given["full"].mean(axis=1)
    apart = max(np.abs(ours - plain).max(), np.abs(np.asarray(theirs) - plain).max())
    if not apart <= SAME:
        raise UserError(
            f"full attention differs by {apart:.2g} nats between the two sides: segments.npz, "
            "presses.json and the checkpoint are not of one run; make them again."
        )


def table(
    mine: dict[str, np.ndarray], presses: Sequence[dict], given: dict[str, np.ndarray]
) -> list[dict]:
    """Rows of the result file: NLL, what it recovers, ΔNLL, and the entries before the tail."""
    seed, budget, history = (int(given[name]) for name in ("seed", "budget", "history"))
    theirs = {f"kvpress: {row['name']}": row for row in presses}
    nll = mine | {name: np.array(row["nll"]) for name, row in theirs.items()}
    ways = {name: values for name, values in nll.items() if name not in BOUNDS}
    rows = recovered_rows(nll["recent"], nll["full"], ways, np.arange(len(nll["full"])), seed)
    for row in rows:
        name = row["what"]
        delta = interval(nll[name] - nll[AGAINST], seed=seed)
        row |= {"delta_nll": delta.value, "delta_low": delta.low, "delta_high": delta.high}
        peer = theirs.get(name)
        if peer is None:
            row["entries"] = history if name == "full" else budget
            row |= {"sees_future": True} if METHODS[name].sees_future else {}
            continue
        row["entries"] = peer["entries"]
        if peer["note"]:
            row["note"] = peer["note"]
    return rows


def notes(presses: dict, given: dict[str, np.ndarray]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in presses["versions"].items())
    scored = given["full"].shape[1]
    return [
        f"{len(given['tokens'])} segments: {int(given['history']):,} tokens of history, {scored} "
        "scored behind them; the prefix stands before all and costs nothing.",
        f"Peers: {versions}, the exported base in float32. Their full attention is ours to "
        f"{presses['largest_difference']:.1g} nats a token. Presses keep a row's old position, "
        "and read the tail behind the whole history's; `rerotated` and ours stand close together.",
        "Asked of each press: compression_ratio = 1 − (prefix + budget) / (prefix + history); "
        "entries are counted afterwards, without the prefix.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.peers.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="with segments.npz and presses.json")
    parser.add_argument("--checkpoint", type=Path, help="default: that of the segments")
    names = [name for name in METHODS if name not in LEFT_OUT]
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", type=Path, help="default: DIR/peers.json")
    args = parser.parse_args(arguments)
    out = args.json or args.folder / "peers.json"
    entry.check_file(out)
    given = load_segments(args.folder)
    presses = load_presses(args.folder, len(given["tokens"]))
    chosen = tuple(dict.fromkeys([*BOUNDS, AGAINST, *args.methods]))
    items = tuple(sorted({item for name in chosen for item in METHODS[name].items}))
    mine = ours(open_checkpoint(args.checkpoint or str(given["checkpoint"]), items), given, chosen)
    ensure_same(mine["full"], given, presses["full"])
    steps = str(given["command"]), presses["command"], entry.command(parser, arguments)
    result = {"name": "peers", "notes": notes(presses, given), "versions": presses["versions"]}
    rows = table(mine, presses["presses"], given)
    entry.write_result(out, " && ".join(steps), int(given["seed"]), rows, **result)
    print_table(load_result(out), Console())


if __name__ == "__main__":
    entry.run(main)
