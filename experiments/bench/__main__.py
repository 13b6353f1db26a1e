"""Measures one part of the system against its alternatives.

    python -m experiments.bench tail --checkpoint=data/checkpoints/pico --json runs/tail.json
    python -m experiments.bench tree [--only=NAME,…] [--smoke] [--workdir=DIR] --json runs/tree.json

tail: the tail policies of law 8, streamed over the same held-out tokens behind the same history:
NLL, and milliseconds of a refocus.

tree: the store against a raw file and NumPy in the same run, its behaviour under kills, and what a
replaced file costs. A tree of a billion tokens is written below --workdir and removed: 9 GB of
disk and some minutes. --only names rows to measure; --smoke makes all of them small.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import entry, report
from experiments.bench import tail, tree
from experiments.quickstart import SHIPPED


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["tail", "tree"])
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--past", type=int, default=8192, help="tail: tokens of history before")
    parser.add_argument("--tokens", type=int, default=8192, help="tail: tokens streamed")
    parser.add_argument("--only", default="", help=f"tree: some of {', '.join(tree.PARTS)}")
    parser.add_argument("--smoke", action="store_true", help="tree: seconds instead of minutes")
    parser.add_argument("--workdir", type=Path, help="tree: where to write; default: a temporary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="the result file; default: runs/WHAT.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = flags()
    args = parser.parse_args(arguments)
    path = args.json or Path("runs") / f"{args.what}.json"
    if args.what == "tail":
        rows, more = tail.run(args), {}
    else:
        rows, more = tree.run(args), {"interval": tree.INTERVAL, "notes": tree.NOTES}
    command = entry.command(parser, arguments)
    entry.write_result(path, command, args.seed, rows, name=args.what, **more)
    report.print_table(report.load_result(path), Console())


if __name__ == "__main__":
    entry.run(main)
