"""Measures one part of the system against its alternatives.

    python -m experiments.bench tail --checkpoint=data/checkpoints/pico --json runs/tail.json

tail: the tail policies of law 8, streamed over the same held-out tokens behind the same history:
NLL, and milliseconds of a refocus.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import entry, report
from experiments.comparison import Protocol, session_configs
from experiments.quickstart import SHIPPED, history
from experiments.statistics import interval
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionConfig
from mctx.tree.ingest import Ingest, Reader, tree_spec
from mctx.tree.store import Tree

POLICIES = {
    "window": dict(tail="window"),
    "keep": dict(tail="keep"),
    "reread 32": dict(tail="reread", reread=32),
    "reread 128": dict(tail="reread", reread=128),
    "reread 256": dict(tail="reread", reread=256),
}
PIECE = 256  # tokens of one segment of the bootstrap


def tail(opened: Opened, tokens: np.ndarray, past: int, seed: int) -> list[dict]:
    """Rows: ΔNLL of each policy against `window`, and what its refocuses cost."""
    config = session_configs(opened.model, Protocol(recent=8))["lens"]
    reader = Reader(opened.model, opened.params)
    nll, ms = {}, {}
    for name, policy in POLICIES.items():
        settings = dataclasses.replace(config, every=1, **policy)
        nll[name], ms[name] = _stream(opened, reader, settings, tokens, past, name)
    rows = []
    for name in POLICIES:
        value = interval(nll[name] - nll["window"], seed=seed)
        rows.append(
            {
                "what": name,
                "value": value.value,
                "unit": "ΔNLL against window, nats/token",
                "low": value.low,
                "high": value.high,
                "n": len(nll[name]),
                "nll": float(nll[name].mean()),
                "ms_per_refocus": float(np.median(ms[name])),
            }
        )
    return rows


def _stream(opened, reader, config: SessionConfig, tokens, past, name):
    """Mean NLL of every piece [n], and the milliseconds of every refocus after the first."""
    tree = Tree.create(f"memory://bench-{name}", tree_spec(opened.model, opened.fingerprint))
    for _ in Ingest(reader, tree).feed(tokens[:past]):
        pass
    spent = []

    def watch(session, scalars):
        spent.append(scalars["refocus/ms_decide"] + scalars["refocus/ms_assemble"])

    session = Session(opened, tree, config, reader, on_refocus=watch)
    pieces = tokens[past : past + (len(tokens) - past) // PIECE * PIECE].reshape(-1, PIECE)
    return np.array([np.nanmean(session.predict(piece)) for piece in pieces]), spent[8:]


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("what", choices=["tail"])
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--past", type=int, default=8192, help="tokens of history before")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens streamed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/tail.json"))
    arguments = parser.parse_args()
    opened = open_checkpoint(arguments.checkpoint)
    past, length = arguments.past, arguments.tokens
    tokens, _ = history(arguments.checkpoint, opened, past + length)
    rows = tail(opened, tokens[: past + length], past, arguments.seed)
    command = entry.command(parser, None)
    entry.write_result(arguments.json, command, arguments.seed, rows, name="tail")
    report.print_table(report.load_result(arguments.json), Console())


if __name__ == "__main__":
    entry.run(main)
