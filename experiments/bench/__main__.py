"""Measures one part of the system against its alternatives.

    python -m experiments.bench tail [--input=SOURCE …] [--samples=N] --json runs/tail.json
    python -m experiments.bench tree [--only=NAME,…] [--smoke] [--workdir=DIR] --json runs/tree.json
    python -m experiments.bench allocator [--only=NAME,…] [--smoke] --json runs/allocator.json
    python -m experiments.bench resume [--only=NAME,…] [--smoke] --json runs/resume.json
    python -m experiments.bench runtime [--only=NAME,…] [--smoke] [--model=1b | --config=FILE]
        [--seconds=N] [--decide=ahead] [--device-mib=N] --json runs/bench/runtime.json
    python -m experiments.bench growth [--smoke] [--model=1b | --config=FILE] [--seconds=N]
        --json runs/bench/growth.json
    python -m experiments.bench train [--only=NAME,…] [--corpus=DIR] [--smoke]
        --json runs/bench/train.json
    python -m experiments.bench positions [--input=SOURCE …] [--samples=N] --json
        runs/bench/positions.json

tail: the tail policies of law 8, one of them also with refocuses decided ahead, on the same
segments of held-out text: recovered, and milliseconds of a block with its refocus. --input as in
`experiments.eval`; --samples of each package or author.

tree: the store against a raw file and NumPy in the same run, its behaviour under kills, and what a
replaced file costs. A tree of a billion tokens is written below --workdir and removed: 9 GB of
disk and some minutes.

allocator: 10,000 generated cases against the exact optimum, milliseconds of a refocus (on whatever
JAX runs on), and how calm it is by hysteresis and cooldown.

resume: training that is killed and told to stop at random steps, 20 times each, and goes on in
another number of processes; what saving costs; seconds from the command to the first step.

runtime: a token, a question and a refocus behind a long history, against a short one and against
full attention; sessions side by side; a stream's NLL against a slow reading. Its sizes are those
of what JAX runs on. --model=1b measures random weights of Llama-3.2-1B's shape, --config those of
a file of experiments/configs. --decide and --device-mib are settings of its sessions. What is
known is written after every part; none is begun when --seconds have passed.

growth: milliseconds, memory and bytes read of a token against the length of the history, of a
session, of full attention and of a sliding window; `experiments.report` draws them.

train: pre-training a 300 M base on one device: tokens a second, the share of the device's peak, and
PyTorch's speed at the same (on a CPU, and with --smoke, the pico's shape); with --corpus, whether
training waits for its data; with --only=devices,losses, phases base and gist on all devices
against one: their speed, and what their losses differ by.

positions: rows of shown blocks from their ingest windows, at contiguous positions, against reading
the blocks again in the working context, at contiguous and at global positions: recovered, on the
same segments. --input and --samples as for tail.

--only names rows to measure; --smoke makes all of them small. --name is that of the table which
`experiments.report` fills: <!-- table:NAME -->.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from experiments import entry, report
from experiments.bench import allocator, growth, positions, pretraining, resume, runtime, tail, tree
from experiments.bench.weights import MODELS
from experiments.quickstart import SHIPPED
from mctx.errors import UserError
from mctx.runtime.config import CHOICES

BENCHES = dict(
    tail=tail,
    tree=tree,
    allocator=allocator,
    resume=resume,
    runtime=runtime,
    growth=growth,
    positions=positions,
    train=pretraining,
)


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=list(BENCHES))
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--input", nargs="+", default=["held-out"], help="tail, positions: texts")
    parser.add_argument("--past", type=int, default=1024, help="tail: tokens of history before")
    parser.add_argument("--tokens", type=int, default=768, help="tail: tokens streamed")
    parser.add_argument("--samples", type=int, default=2, help="tail, positions: of each text")
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--model", choices=list(MODELS), help="runtime: random weights, by name")
    drawn.add_argument("--config", type=Path, help="runtime: random weights of this config")
    parser.add_argument("--seconds", type=float, default=1e9, help="runtime, growth: a budget")
    decide = CHOICES["decide"]
    parser.add_argument("--decide", choices=decide, default=decide[0], help="runtime: of sessions")
    parser.add_argument("--device-mib", type=int, default=0, help="runtime: rows of blocks there")
    parser.add_argument("--corpus", type=Path, help="train: of `python -m data.corpus`")
    parser.add_argument("--dtype", default="float32", help="runtime: of a checkpoint's base")
    parser.add_argument("--only", default="", help="some of a bench's parts")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--workdir", type=Path, help="where to write; default: a temporary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result; default: the bench's")
    parser.add_argument("--json", type=Path, help="the result file; default: runs/NAME.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = flags()
    args = parser.parse_args(arguments)
    name = args.name or args.what
    path = args.json or Path("runs") / f"{name}.json"
    if args.samples < 1:
        raise UserError("--samples must be positive: give at least 1 of each text.")
    entry.check_file(path)
    bench, command = BENCHES[args.what], entry.command(parser, arguments)
    more = {"interval": bench.INTERVAL, "notes": bench.NOTES} | getattr(bench, "MORE", {})
    found = bench.run(args)
    for rows in found if isinstance(found, Iterator) else [found]:
        entry.write_result(path, command, args.seed, rows, name=name, **more)
    report.print_table(report.load_result(path), Console())


if __name__ == "__main__":
    entry.run(main)
