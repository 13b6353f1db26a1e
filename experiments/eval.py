"""Measures what a checkpoint can do, and writes one result file a measurement.

    python -m experiments.eval --workdir=DIR | --checkpoint=DIR [--step=latest] [--lora]
        [--suite=NAME … | all] [--seed=S] [--out=DIR] [--json=FILE] [--smoke]
        [--corpus=DIR | --input=SOURCE …] [--segments=N] [--label=TEXT]
        [--methods=NAME …] [--lengths=N …] [--budget=N] [--budgets=N …] [--samples=N]
        [--depths=D …] [--distractors=N …] [--haystack=SOURCE]

base         NLL of the base by position, and behind a quarter of its window and behind all of it
gists        what gists alone recover of 512 tokens, level by level; blocks told again from theirs
gists_far    what gists of 1,536 tokens recover behind the recent 512
choices      what rows of tokens recover, by how many they are chosen among
lens         what 2, 4, 8 or 16 blocks of 48 recover, chosen by the lens and by others
labels       labels and the lens against exact worths of single blocks; calibration
robustness   what a lens recovers under noise, strange gists and look-alikes
shift        refocuses until the focus is back where the subject is
long_nll     NLL behind ever longer histories of held-out code or books
retrieval    RULER's families: accuracy by length and depth
distractors  accuracy against the number of look-alikes
facts        questions of one, two and three facts over a story
kv           key–value pairs by position
edits        a document is replaced, and the answer must change
descent      what opening level by level misses of what scoring all blocks would choose

The first eight take segments of text, as many packages or authors as there are, and intervals are
over these; base, gists and lens are run, where the checkpoint has their parts, if none is named.
The others put every method of `experiments.methods` behind the same histories, at equal budget.
Each writes DIR/eval/NAME.json, or NAME-LABEL.json, with all that is needed to make it again; gists
also gists-again, lens also lens-gap. Records are kept beside them, in NAME.jsonl one for every
sample and method, in segments.jsonl one for every text and suite of the first eight: an interrupted
run, run again, goes on behind them.
The text is, unless given, packages of this Python that the checkpoint was never trained on.
--smoke takes few samples of each, to see that all works.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import entry
from experiments.methods import METHODS
from experiments.report import load_result
from experiments.suites import (
    Asking,
    Suite,
    base,
    choices,
    descent,
    distractors,
    edits,
    facts,
    gists,
    kv,
    labels,
    lens,
    long_nll,
    planning,
    results,
    retrieval,
    robustness,
    shift,
)
from experiments.suites.segments import Streams, corpus_streams, cut
from experiments.suites.texts import HELD_OUT, source_streams
from experiments.tables import print_table
from mctx import checkpoint
from mctx.errors import UserError
from mctx.opened import ITEMS, Opened, open_checkpoint
from mctx.tree.ingest import Reader

SUITES: dict[str, Suite] = {
    "base": base.SUITE,
    "gists": gists.SUITE,
    "gists_far": gists.FAR_SUITE,
    "choices": choices.SUITE,
    "lens": lens.SUITE,
    "labels": labels.SUITE,
    "robustness": robustness.SUITE,
    "shift": shift.SUITE,
}
UNASKED = "base", "gists", "lens"  # what is run if no suite is named
ASKING: dict[str, Asking] = {
    "long_nll": long_nll.SUITE,
    "retrieval": retrieval.SUITE,
    "distractors": distractors.SUITE,
    "facts": facts.SUITE,
    "kv": kv.SUITE,
    "edits": edits.SUITE,
    "descent": descent.SUITE,
}
ALL = "all"
HELD_OUT_TOKENS = 1_000_000  # tokens of packages to draw from
SMOKE_SEGMENTS, SMOKE_HELD_OUT = 4, 50_000


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workdir", type=Path, help="a training workdir")
    where.add_argument("--checkpoint", type=Path, help="a checkpoint")
    add("--step", type=step, default="latest", help="a number, or latest")
    add("--lora", action="store_true", help="apply the checkpoint's LoRA")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, help="a folder made by data.corpus (first eight)")
    source.add_argument(
        "--input", nargs="+", metavar="SOURCE",
        help="file, folder, package:NAME, hf:NAME or held-out",
    )  # fmt: skip
    names = [*SUITES, *ASKING, ALL]
    add("--suite", "--suites", nargs="+", choices=names, metavar="NAME", help="what to run, or all")
    add("--segments", type=int, help="of text, for those that take them (default: 64 or 12)")
    add("--label", help="added to the names of results, to tell texts or plans apart: base-LABEL")
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    add("--lengths", nargs="+", type=planning.tokens, help="tokens of history: 1536 8k 1m")
    add("--budget", type=planning.tokens, default=512, help="entries shown (default 512)")
    add("--budgets", nargs="*", type=planning.tokens, default=[256, 1024],
        help="more budgets, at the shortest length of long_nll")  # fmt: skip
    add("--samples", type=int, help="of each cell; of each package or author in long_nll")
    add("--depths", nargs="+", type=float, default=[0, 0.25, 0.5, 0.75, 1], help="or positions")
    add("--distractors", nargs="+", type=int, default=[0, 2, 4, 8, 16], help="look-alikes")
    add("--haystack", metavar="SOURCE", help="what tasks are hidden in: noise, repeat or a text")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="where result files go (default: DIR/eval)")
    add("--json", type=Path, help="one result file with all rows")
    add("--smoke", action="store_true", help="few samples of each")
    return parser


def step(text: str) -> int | str:
    return text if text == "latest" else int(text)


def chosen_suites(directory: Path, names: Sequence[str] | None) -> list[str]:
    """Those named; else, or of all, those whose items the directory holds, and at least base."""
    have = {item for item in checkpoint.TRAINED_BY if checkpoint.holds(directory, item)}
    can = [n for n, suite in SUITES.items() if have.issuperset(suite.items)] or ["base"]
    if names is None:
        return [name for name in can if name in UNASKED]
    return list(dict.fromkeys([*can, *ASKING] if ALL in names else names))


def read_streams(
    args: argparse.Namespace, directory: Path, opened: Opened
) -> tuple[Streams, list[str]]:
    """What the suites of segments are measured on, and notes on what was left out."""
    if args.corpus:
        return corpus_streams(args.corpus, opened.model.base.vocab_size), []
    enough = SMOKE_HELD_OUT if args.smoke else HELD_OUT_TOKENS
    return source_streams(args.input or [HELD_OUT], directory, opened.tokenizer, enough)


def measure(name: str, args, opened: Opened, text: tuple, command: str, out: Path) -> list[Path]:
    """Runs one suite of segments; returns its result files: none where there is nothing to tell."""
    suite, (streams, notes) = SUITES[name], text
    length = suite.length(opened.model)
    if length is None:
        print(f"{name}: left out, the base's trained window is too short.", file=sys.stderr)
        return []
    count = args.segments or (SMOKE_SEGMENTS if args.smoke else suite.segments)
    segments = cut(streams, length, count, args.seed)
    found, records = results.measured(name, suite, opened, segments, args.seed, out)
    sources = sorted(set(segments.groups))
    listed = ", ".join(sources[:12]) + (f" and {len(sources) - 12} more" * (len(sources) > 12))
    told = f"{len(segments.tokens)} segments of {length:,} tokens out of: {listed}."
    if not found:
        print(f"{name}: left out, the base reads no better behind its context.", file=sys.stderr)
    made = []
    for measured, rows in found.items():
        result = results.labelled(measured, args.label)
        made.append(out / f"{result}.json")
        views = {name: view.to_dict() for name, view in suite.views.items()}
        told_by_views = {"views": views} if "view" in rows[0] else {}
        entry.write_result(made[-1], command, args.seed, rows, name=result, records=records,
                           interval=segments.interval, notes=[*suite.notes, *notes, told],
                           **told_by_views)  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = flags()
    args = parser.parse_args(arguments)
    if args.segments is not None and args.segments < 2:
        raise UserError("an interval needs at least two segments: raise --segments.")
    directory = args.workdir or args.checkpoint
    command, out = entry.command(parser, arguments), args.out or directory / "eval"
    names = chosen_suites(directory, args.suite)
    entry.check_folder(out)
    if args.json:
        entry.check_file(args.json)
    opened = open_checkpoint(directory, items(directory, names), args.step, args.lora)
    text = read_streams(args, directory, opened) if set(names) & set(SUITES) else ({}, [])
    reader = Reader(opened.model, opened.params) if set(names) & set(ASKING) else None
    console, everything = Console(), []
    for name in names:
        began = time.perf_counter()
        if name in SUITES:
            made = measure(name, args, opened, text, command, out)
        else:
            plan, notes = planning.plan_of(name, ASKING[name], args, reader, opened)
            made = [results.ask(name, ASKING[name], plan, command, out, notes, args.label)]
        for path in made:
            result = load_result(path)
            print_table(result, console)
            everything += [row | {"what": f"{path.stem}: {row['what']}"} for row in result["rows"]]
        print(f"{name}: {time.perf_counter() - began:.0f} s, written to {out}")
    if args.json:
        entry.write_result(args.json, command, args.seed, everything, name="eval")


def items(directory: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Checkpoint items that these suites read: all there are, for those that ask."""
    wanted = [item for name in names if name in SUITES for item in SUITES[name].items]
    if set(names) & set(ASKING):
        have = [item for item in ITEMS if checkpoint.holds(directory, item)]
        wanted += ["base", "gistnet", *have]
    return tuple(dict.fromkeys(wanted))


if __name__ == "__main__":
    entry.run(main)
