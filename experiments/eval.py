"""Measures what a checkpoint can do, and writes one result file a measurement.

    python -m experiments.eval --workdir=DIR | --checkpoint=DIR [--step=latest]
        [--corpus=DIR | --input=PATH …] [--segments=N] [--seed=S] [--out=DIR] [--json=FILE]
        [--smoke]

base   NLL of the base by position in its window
gists  what gists alone recover of 512 tokens, level by level
lens   what 2, 4, 8 or 16 blocks of 48 recover, chosen by the lens and by others

Those whose parts the checkpoint has are run; result files go to DIR/eval. The text is, unless
given, packages of this Python that the checkpoint was never trained on. Intervals are bootstrap
95 % over segments. --smoke takes few segments, to see that all works.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import entry
from experiments.report import load_result, print_table
from experiments.suites import Suite, base, gists, lens
from experiments.suites.segments import (
    Streams,
    corpus_streams,
    cut,
    held_out_streams,
    source_streams,
)
from mctx import checkpoint
from mctx.errors import UserError
from mctx.opened import Opened, open_checkpoint

SUITES = {"base": base.SUITE, "gists": gists.SUITE, "lens": lens.SUITE}
HELD_OUT = 1_000_000  # tokens of packages to draw from
SMOKE_SEGMENTS, SMOKE_HELD_OUT = 4, 50_000


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", type=Path, help="a training workdir")
    where.add_argument("--checkpoint", type=Path, help="a checkpoint")
    parser.add_argument("--step", type=step, default="latest", help="a number, or latest")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, help="a folder made by data.corpus")
    source.add_argument("--input", nargs="+", metavar="PATH", help="file, folder or package:NAME")
    parser.add_argument(
        "--suites", nargs="+", choices=SUITES, help="what to run (default: all that can be)"
    )
    parser.add_argument("--segments", type=int, default=64, help="of each measurement (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where result files go (default: DIR/eval)")
    parser.add_argument("--json", type=Path, help="one result file with all rows")
    parser.add_argument("--smoke", action="store_true", help="few segments")
    return parser


def step(text: str) -> int | str:
    return text if text == "latest" else int(text)


def chosen_suites(directory: Path, names: Sequence[str] | None) -> dict[str, Suite]:
    """Those named, or all whose items the directory holds; UserError where there is no base."""
    if names:
        return {name: SUITES[name] for name in names}
    have = {item for item in checkpoint.TRAINED_BY if checkpoint.holds(directory, item)}
    return {n: s for n, s in SUITES.items() if have.issuperset(s.items)} or {"base": base.SUITE}


def read_streams(args: argparse.Namespace, directory: Path, opened: Opened) -> Streams:
    if args.corpus:
        return corpus_streams(args.corpus, opened.model.base.vocab_size)
    if args.input:
        return source_streams(args.input, opened.tokenizer)
    enough = SMOKE_HELD_OUT if args.smoke else HELD_OUT
    return held_out_streams(directory, enough, opened.tokenizer)


def run_suite(
    suite: Suite, opened: Opened, streams: Streams, segments: int, seed: int
) -> tuple[dict[str, list[dict]], list[str]] | None:
    """Rows by name of result, and notes; None where the base's window is too short."""
    length = suite.length(opened.model)
    if length is None:
        return None
    tokens, names = cut(streams, length, segments, seed)
    rows = suite.measure(opened.model, opened.params, tokens, seed)
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return rows, [*suite.notes, f"{len(tokens)} segments of {length:,} tokens out of: {listed}."]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = flags()
    args = parser.parse_args(arguments)
    if args.segments < 2:
        raise UserError("an interval needs at least two segments: raise --segments.")
    directory = args.workdir or args.checkpoint
    suites = chosen_suites(directory, args.suites)
    items = tuple(dict.fromkeys(item for suite in suites.values() for item in suite.items))
    opened = open_checkpoint(directory, items, args.step)
    streams = read_streams(args, directory, opened)
    segments = SMOKE_SEGMENTS if args.smoke else args.segments
    facts = entry.command(parser, arguments), args.seed
    console, out = Console(), args.out or directory / "eval"
    everything = []
    for name, suite in suites.items():
        began = time.perf_counter()
        found = run_suite(suite, opened, streams, segments, args.seed)
        if found is None:
            print(f"{name}: left out, the base's trained window is too short.", file=sys.stderr)
            continue
        results, notes = found
        for result, rows in results.items():
            path = out / f"{result}.json"
            entry.write_result(path, *facts, rows, name=result, notes=notes)
            print_table(load_result(path), console)
            everything += [row | {"what": f"{result}: {row['what']}"} for row in rows]
        print(f"{name}: {time.perf_counter() - began:.0f} s, written to {out}")
    if args.json:
        entry.write_result(args.json, *facts, everything, name="eval")


if __name__ == "__main__":
    entry.run(main)
