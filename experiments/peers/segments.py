"""What a peer is given: the base as Transformers loads it, and the segments that all are scored on.

    python -m experiments.peers.segments --checkpoint=DIR --out=NEW [--input=PATH …]
        [--segments=N] [--history=TOKENS] [--tail=TOKENS] [--budget=ENTRIES] [--seed=S]

NEW gets `hf`, the export of the base (`experiments.export_hf`), and `segments.npz`:

tokens   int32 [n, history + tail]; the text is, unless given, held-out packages of this Python
history  how many of them are history; budget: entries that may be shown of it
prefix   int32 [P]: what the base reads before everything; in every method it costs nothing
window   tokens that the base was trained to read at once
full     float32 [n, tail - 1]: our NLL of the tail's tokens but the first, given all before them.
         A peer that does not reproduce it is not running the same model on the same text.
seed, command  what drew the segments
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import entry, export_hf
from experiments.suites.base import tail_of_base
from experiments.suites.rows import in_batches
from experiments.suites.segments import cut
from experiments.suites.texts import HELD_OUT, source_streams
from mctx.errors import UserError
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened, open_checkpoint

HELD_OUT_TOKENS = 400_000  # tokens of packages to draw from
FILE = "segments.npz"


def check(args: argparse.Namespace, model: Wrapped) -> None:
    """Refuses lengths that cannot be compared, each in one sentence (UserError)."""
    block, room = model.gist.block, model.base.window - len(model.base.prefix)
    wants = [
        (args.tail >= 2, "a tail needs two tokens: the first is only read."),
        (args.history % block == 0, f"--history must be whole blocks of {block} tokens."),
        (0 < args.budget < args.history, "--budget must be less than --history, and above zero."),
        (
            args.history + args.tail <= room,
            f"full attention reads {room} tokens at once as the base was trained: lower --history.",
        ),
    ]
    for holds, sentence in wants:
        if not holds:
            raise UserError(sentence)


def save(path: Path, **arrays: np.ndarray) -> None:
    """Writes the arrays whole or not at all."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    np.savez(draft, **arrays)
    draft.replace(path)


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.peers.segments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint or workdir")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="file, folder or package:NAME")
    parser.add_argument("--segments", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--history", type=int, default=1536, help="tokens (default: 1536)")
    parser.add_argument("--tail", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--budget", type=int, default=512, help="entries (default: 512)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def draw(args: argparse.Namespace, opened: Opened) -> np.ndarray:
    """The segments, int32 [n, history + tail]."""
    sources = args.input or [HELD_OUT]
    streams, notes = source_streams(sources, args.checkpoint, opened.tokenizer, HELD_OUT_TOKENS)
    print(*notes, sep="\n", end="\n" * bool(notes))
    return cut(streams, args.history + args.tail, args.segments, args.seed).tokens


def main(arguments: Sequence[str] | None = None) -> None:
    parser = flags()
    args = parser.parse_args(arguments)
    opened = open_checkpoint(args.checkpoint, ("base",))
    check(args, opened.model)
    tokens = draw(args, opened)
    base = opened.params["base"]
    nll = in_batches(lambda piece: tail_of_base(opened.model, args.tail, base, piece), tokens)
    export_hf.main([str(args.checkpoint), str(args.out / "hf")])
    save(
        args.out / FILE,
        tokens=tokens,
        history=args.history,
        budget=args.budget,
        prefix=np.asarray(opened.model.base.prefix, np.int32),
        window=opened.model.base.window,
        full=nll.astype(np.float32),
        seed=args.seed,
        checkpoint=str(args.checkpoint),
        command=entry.command(parser, arguments),
    )
    print(f"{args.out / FILE}: {len(tokens)} segments; next: experiments.peers.presses {args.out}")


if __name__ == "__main__":
    entry.run(main)
