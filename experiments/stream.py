"""Streams text into a MegaContext tree and shows, as it reads, what the model looks at.

    python -m experiments.stream --checkpoint=DIR --tree=URI [--input=FILE|-] [--budget=W]
        [--generate=N] [--prompt=TEXT] [--temperature=T] [--stop=TEXT] [--session=NAME]
        [--workdir=DIR [--page]]

URI is a path, file://, gs://, s3:// or memory://name; a tree that is there is continued, else one
is made. `-` reads standard input as it comes. In a terminal, a live panel shows which part of the
history stands in the working context at which level of detail; elsewhere a line is printed every
few hundred tokens. With --generate, the history (and the prompt) is continued. With --workdir,
every refocus goes to metrics.jsonl, TensorBoard and layouts.jsonl there (see experiments.report);
with --page also, to reasons.jsonl, what the lens brought back and the words that pulled it, and at
the end all is drawn in DIR/report, page.png on one page.

A tree holds whole blocks: the last few tokens, short of a block, are read but not stored. With
--session, all that is in memory is saved beside the tree at the end, those tokens included, and the
next run with the same name and settings goes on exactly there. An interrupt (SIGINT or SIGTERM)
saves it, too, and tells how much of the input is stored.
"""

import argparse
import codecs
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console

from experiments import entry
from experiments.display import Clock, Display, Moment, layout_record
from experiments.reasons import Reasons
from experiments.report import LAYOUTS_FILE, REASONS_FILE, draw_run
from experiments.sessions import ensure_room
from mctx.errors import UserError
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionConfig, generation, saving
from mctx.telemetry import Telemetry

AT_ONCE = 256  # tokens between two lines, or two updates of the panel's NLL
BYTES = 2**14  # read at once
LONGEST = 4096  # characters without a line's end that are waited for


def pieces(source: BinaryIO, name: str) -> Iterator[str]:
    """Text as it comes, cut behind lines. UserError where it is not UTF-8."""
    decoder, waiting = codecs.getincrementaldecoder("utf-8")(), ""
    try:
        while data := source.read1(BYTES):
            waiting += decoder.decode(data)
            cut = waiting.rfind("\n") + 1 or (len(waiting) > LONGEST) * len(waiting)
            if cut:
                yield waiting[:cut]
            waiting = waiting[cut:]
        waiting += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason}): convert it to UTF-8.") from error
    if waiting:
        yield waiting


class Monitor:
    """Keeps the last refocus for the display; writes them all to the workdir, if there is one."""

    def __init__(self, display: Display, workdir: Path | None, reasons: bool = False):
        self._display, self._clock, self._files = display, Clock(), ExitStack()
        self._telemetry = self._layouts = None
        self._reasons = Reasons(workdir / REASONS_FILE) if reasons else None
        self._report: dict = {}
        if workdir:
            self._telemetry = Telemetry(workdir)
            self._files.callback(self._telemetry.close)
            self._layouts = self._files.enter_context((workdir / LAYOUTS_FILE).open("a"))

    def refocused(self, session: Session, report: dict) -> None:
        """For `Session(on_refocus=…)`."""
        self._report = report
        if self._telemetry:
            self._telemetry.scalars(session.blocks * session.model.gist.block, report)
            self._layouts.write(json.dumps(layout_record(session)) + "\n")
        if self._reasons:
            self._reasons.refocused(session)

    def read(self, session: Session, nll: np.ndarray) -> None:
        """After tokens were read."""
        known = nll[np.isfinite(nll)]
        mean, rate = float(known.mean()) if len(known) else np.nan, self._clock.rate(len(nll))
        if self._telemetry:
            step = session.blocks * session.model.gist.block
            self._telemetry.scalars(step, {"stream/nll": mean, "stream/tokens_per_second": rate})
        self._display.show(
            Moment(
                session.length,
                int(self._report.get("refocus/entries", 0)),
                self._report.get("refocus/swap_rate", np.nan),
                mean,
                rate,
                layout_record(session),
            )
        )

    def close(self) -> None:
        self._files.close()


def feed(session: Session, monitor: Monitor, text: Iterator[str]) -> int:
    """Reads text as it comes, committing after every piece of it; returns tokens read."""
    total, block = 0, session.model.gist.block
    for piece in text:
        ids = session.opened.tokenizer.encode(piece)
        ensure_room(session.focus, session.blocks, session.blocks + len(ids) // block + 1)
        for at in range(0, len(ids), AT_ONCE):
            monitor.read(session, session.read_tokens(ids[at : at + AT_ONCE]))
        session.storing.now()
        total += len(ids)
    return total


def ensure_asked(session: Session, prompt: str, tokens: int) -> None:
    """Refuses a prompt and a continuation for which there is no room behind the history."""
    asked = tokens + len(session.opened.tokenizer.encode(prompt))
    last = session.blocks + asked // session.model.gist.block + 1
    ensure_room(session.focus, session.blocks, last)


def generate(session: Session, prompt: str, tokens: int, **how) -> None:
    """Writes the prompt and its continuation to standard output, as it is drawn."""
    ensure_asked(session, prompt, tokens)
    sys.stdout.write(prompt)
    before, began = session.length, time.perf_counter()
    for text in session.stream(prompt, tokens, **how):
        sys.stdout.write(text)
        sys.stdout.flush()
    read, seconds = session.length - before, time.perf_counter() - began
    print(f"\n[prompt and continuation: {read:,} tokens, {read / seconds:,.1f} tokens/s]")


def begin(opened: Opened, tree: str, name: str | None, config: SessionConfig, **how) -> Session:
    """The session that was saved under `name`, or a new one over the tree."""
    if name and saving.exists(tree, name):
        return Session.load(opened, tree, name, config=config, **how)
    return Session(opened, tree, config, **how)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Meanwhile SIGTERM is as SIGINT: a KeyboardInterrupt. (Only the main thread hears signals.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Kept:
    """What of a session is stored, which is saved under `name`, if it has one."""

    def __init__(self, session: Session, name: str | None):
        self._session, self._name, self._before = session, name, session.length

    def store(self) -> None:
        if self._name:
            self._session.save(self._name)
        else:
            self._session.storing.now()

    @property
    def tokens(self) -> int:
        """Of the history."""
        return self._session.length if self._name else self._session.tree.length

    @property
    def more(self) -> int:
        """Since the session was begun."""
        return max(0, self.tokens - self._before)

    def tell_lost(self) -> None:
        """Says what the tree does not hold."""
        if lost := self._session.length - self.tokens:
            told = f"{lost:,} tokens short of a block are not stored: give --session to keep them."
            print(told, file=sys.stderr)

    def told(self, source: str | None) -> str:
        """After an interrupt; source: what was being read, if it was not read to its end."""
        if source:
            return (
                f"{self.more:,} tokens of {source} are stored; --input is read from its "
                "beginning again, so give only the rest."
            )
        return f"{self.tokens:,} tokens are stored; give no text again that was read already."


def run(session: Session, args, said: dict, source: BinaryIO | None, display, monitor) -> None:
    """Reads and continues as asked. An interrupt ends it when all that was read is stored."""
    kept, unread = Kept(session, args.session), args.input
    try:
        if args.generate:
            ensure_asked(session, args.prompt, args.generate)
        if source:
            with display:
                read = feed(session, monitor, pieces(source, args.input))
            if not read:
                raise UserError(f"{args.input} is empty: give text to read.")
            unread = None
            print(f"{args.tree} holds {session.tree.length:,} tokens.")
        if args.generate:
            generate(session, args.prompt, args.generate, **said)
        kept.store()
        kept.tell_lost()
    except KeyboardInterrupt:
        kept.store()
        sys.exit(f"\ninterrupted: {kept.told(unread)}")


def open_input(source: str) -> BinaryIO:
    if source == "-":
        return sys.stdin.buffer
    if not Path(source).is_file():
        raise UserError(f"there is no file {source}: give UTF-8 text, or - for standard input.")
    return Path(source).open("rb")


def flags() -> argparse.ArgumentParser:
    parser = entry.Parser(
        prog="python -m experiments.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint or workdir")
    parser.add_argument("--tree", required=True, help="where the history lies or will lie")
    parser.add_argument("--input", help="a text to read, or - for standard input")
    parser.add_argument("--budget", type=int, default=512, help="entries (default: 512)")
    capacity = "nodes of a layout: half a million tokens want more than the default of 256"
    parser.add_argument("--capacity", type=int, default=256, metavar="N", help=capacity)
    parser.add_argument("--recent", type=int, default=4, help="blocks always shown (default: 4)")
    parser.add_argument("--every", type=int, default=1, help="blocks a refocus (default: 1)")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="tokens to generate")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top_k", type=int, default=0, help="0 cuts nothing (default)")
    parser.add_argument("--top_p", type=float, default=1.0, help="1 cuts nothing (default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[], help="end before it; repeatable")
    parser.add_argument("--session", metavar="NAME", help="go on from it; save to it at the end")
    parser.add_argument("--lora", action="store_true", help="apply the checkpoint's LoRA")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workdir", type=Path, help="where metrics and layouts go")
    parser.add_argument("--page", action="store_true", help="log reasons, too, and draw all of it")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = flags().parse_args(arguments)
    if not (args.input or args.generate):
        raise UserError("there is nothing to do: give --input to read, or --generate, or both.")
    if args.page and not args.workdir:
        raise UserError("--page draws what a workdir logged: give --workdir, too.")
    if args.session is not None:
        saving.key_of(args.session)  # refused before anything is read
    said = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    said |= dict(seed=args.seed, stop=args.stop)
    generation.asked(args.generate, **said)  # refused before anything is read
    source = open_input(args.input) if args.input else None
    items = ("base", "gistnet", "lensnet")
    how = dict(lora=args.lora, dtype=args.dtype, untrained=True)
    opened = open_checkpoint(args.checkpoint, items, **how)
    if "lensnet" not in opened.params:
        print(f"{args.checkpoint} holds no lens: the focus goes by recency.", file=sys.stderr)
    room = dict(budget=args.budget, capacity=args.capacity)
    config = SessionConfig(**room, recent=args.recent, every=args.every)
    display = Display(Console(), f"MegaContext · {args.tree}", args.budget)
    monitor = Monitor(display, args.workdir, args.page)
    try:
        with terminable():
            session = begin(opened, args.tree, args.session, config, on_refocus=monitor.refocused)
            run(session, args, said, source, display, monitor)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the tree holds what was committed.")
    finally:
        monitor.close()
    if args.page:
        out = args.workdir / "report"
        out.mkdir(exist_ok=True)
        draw_run(args.workdir, out)
        print(f"drawn in {out}")


if __name__ == "__main__":
    entry.run(main)
