"""The whole loop on real text, with one command.

    python -m experiments.quickstart [--workdir=runs/quickstart] [--train]

Takes Python packages of this interpreter that the checkpoint never saw, streams them through a
session (ingest, refocus, predict) into a MegaContext tree, compares the ways of focusing at equal
budget, and writes `summary.json`, `metrics.jsonl`, TensorBoard events and pictures. Run again with
the same workdir, it goes on where it was. `--train` first trains every phase from nothing at toy
size, to show the machinery; a base trained for minutes gains nothing from context.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from data.text import held_out_packages
from experiments import comparison, entry, pictures, report, ship, toy
from experiments.methods.focused import nodes_for, tokens_config
from experiments.suites.records import fingerprints
from mctx.errors import UserError
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session
from mctx.runtime.config import focus_configs
from mctx.runtime.opening import open_tree
from mctx.telemetry import ProgressBar, Telemetry

SHIPPED = Path(__file__).parent.parent / "data" / "checkpoints" / "pico"
PACKAGES = 4  # that the history is made of, at least
EVERY = 8  # blocks between two refocuses of the stream
PIECE = 1024  # tokens streamed between two movements of the bar
console = Console()


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.quickstart", description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--tokens", type=int, default=36_864, help="length of the history")
    parser.add_argument("--segments", type=int, default=8, help="places compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="train a toy from nothing first")
    arguments = parser.parse_args()
    if min(arguments.tokens, arguments.segments) < 1:
        raise UserError("--tokens and --segments must be positive.")
    workdir = arguments.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = toy.make(workdir / "toy", console) if arguments.train else arguments.checkpoint
    opened = open_checkpoint(checkpoint)
    tokens, packages = history(checkpoint, opened, arguments.tokens)
    console.print(f"history: {len(tokens):,} tokens of {packages}, never seen in training")
    protocol = comparison.Protocol(segments=arguments.segments, seed=arguments.seed)
    session = stream(opened, tokens, workdir, protocol)
    whole, near = compare(opened, session, workdir, protocol)
    rows = comparison.table(whole, near, protocol, untrained_rows(opened))
    entry.write_result(
        workdir / "summary.json",
        entry.command(parser, None),
        arguments.seed,
        rows,
        name="quickstart",
        tokens=len(tokens),
        packages=packages,
        protocol=vars(protocol),
        notes=verdicts(rows, arguments.train),
    )
    show(workdir)


def history(checkpoint: Path, opened: Opened, length: int) -> tuple[np.ndarray, str]:
    """The first `length` tokens of held-out sources, files ended by <eot>; and their packages."""
    tokenizer = opened.tokenizer
    documents = held_out_packages(checkpoint, length, tokenizer, per_package=length // PACKAGES)
    end = np.array([tokenizer.eot_id], np.int32)
    tokens = [np.concatenate([tokenizer.encode(d.text), end]) for d in documents]
    start = np.cumsum([0, *map(len, tokens)])[:-1]
    read = dict.fromkeys(d.package for d, at in zip(documents, start, strict=True) if at < length)
    return np.concatenate(tokens)[:length], ", ".join(read)


def stream(
    opened: Opened, tokens: np.ndarray, workdir: Path, protocol: comparison.Protocol
) -> Session:
    """Predicts the history token by token under the lens, from where the tree ends."""
    telemetry = Telemetry(workdir)
    layouts = (workdir / "layouts.jsonl").open("a")

    def watch(session, scalars):
        position = session.blocks * session.model.gist.block
        telemetry.scalars(position, scalars)
        layouts.write(json.dumps(layout_record(session, position)) + "\n")

    config = dataclasses.replace(tokens_config(opened.model, protocol), every=EVERY, probe_every=8)
    head, _ = focus_configs(opened.model, config)
    nodes = nodes_for(head, len(tokens) // opened.model.gist.block)
    config = dataclasses.replace(config, capacity=max(config.capacity, nodes))
    tree = open_tree(opened, workdir / "tree")
    done = tree.blocks * tree.spec.fanouts[0]
    session = Session(opened, tree, config, on_refocus=watch)
    bar = ProgressBar("streaming", len(tokens))
    bar.begin(min(done, len(tokens)))
    began = time.perf_counter()
    for start in range(done, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        nll = float(np.nanmean(session.predict(piece)))
        stop = start + len(piece)
        rate = (stop - done) / (time.perf_counter() - began)
        telemetry.scalars(stop, {"stream/nll": nll, "stream/tokens_per_second": rate})
        bar.advance(stop)
        bar.report(stop, f"{rate:,.0f} tokens/s, NLL {nll:.3f}")
    bar.close()
    layouts.close()
    telemetry.close()
    return session


def layout_record(session: Session, position: int) -> dict:
    """What the first head shows, for the focus map."""
    live = slice(0, int(session.layouts.count[0]))
    level, index, shown = (np.asarray(x)[0][live].tolist() for x in session.layouts[:3])
    fanouts = list(session.tree.spec.fanouts)
    return dict(position=position, level=level, index=index, shown=shown, fanouts=fanouts)


def compare(
    opened: Opened, session: Session, workdir: Path, protocol: comparison.Protocol
) -> tuple[list[dict], list[dict]]:
    """Every method at every place; places done by an earlier run are read, not made again."""
    path = workdir / "places.jsonl"
    key = json.dumps([vars(protocol), session.tree.length, fingerprints(opened.params)])
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {line["start"]: line for line in lines if line["key"] == key}
    starts = comparison.places(session.tree, opened.model, protocol)
    left = [int(s) for s in starts if int(s) not in done]
    bar = ProgressBar("comparing", len(starts))
    bar.begin(len(starts) - len(left))
    every = comparison.compare(opened, session, protocol, left)
    with path.open("a") as log:
        for i, start in enumerate(left, len(starts) - len(left) + 1):
            whole, near = next(every)
            done[start] = {"key": key, "start": start, "whole": whole, "near": near}
            log.write(json.dumps(done[start]) + "\n")
            log.flush()
            bar.advance(i)
            bar.report(i, f"all {len(comparison.METHODS)} ways at token {start:,}")
    bar.close()
    places = [done[int(s)] for s in starts]
    return [p["whole"] for p in places], [p["near"] for p in places]


def untrained_rows(opened: Opened) -> dict[str, str]:
    """By row of the table: parts whose training left them no better than their control."""
    parts = ship.untrained(opened.config)
    needs = {
        "lens": ("base", "gist", "lens"),
        "two heads": ("base", "gist", "lens", "mof"),
        "heads+staging": ("base", "gist", "lens", "mof"),
    }
    found = {row: [parts[p] for p in wants if p in parts] for row, wants in needs.items()}
    return {row: "; ".join(why) for row, why in found.items() if why}


def verdicts(rows: list[dict], toy_run: bool) -> list[str]:
    """What the table must not leave for the reader to notice."""
    by = {row["what"]: row for row in rows}
    notes = []
    for name in ("lens", "two heads", "heads+staging"):
        row = by[name]
        better = row["delta_high"] < 0
        worse = row["delta_low"] > 0
        word = "beats" if better else "is worse than" if worse else "is not told apart from"
        notes.append(
            f"{name} {word} sinks + recent: ΔNLL {row['delta_nll']:+.3f} "
            f"[{row['delta_low']:+.3f}, {row['delta_high']:+.3f}]."
        )
    if toy_run:
        notes.append(
            "Every part was trained from nothing in minutes, to show the machinery and nothing "
            "else: such a base gains nothing from context, so the table is noise."
        )
    return notes


def show(workdir: Path) -> None:
    """Table, verdicts and pictures; all from the files just written."""
    result = report.load_result(workdir / "summary.json")
    out = workdir / "report"
    out.mkdir(exist_ok=True)
    pictures.bar_chart(result, out / "quickstart.png")
    report.draw_run(workdir, out)
    report.print_table(result, console)
    made = [workdir / "summary.json", workdir / "metrics.jsonl", *sorted(out.glob("*.png"))]
    console.print("written: " + ", ".join(map(str, made)))


if __name__ == "__main__":
    entry.run(main)
