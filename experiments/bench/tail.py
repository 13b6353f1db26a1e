"""The tail policies of law 8, streamed over the same held-out tokens behind the same history: NLL,
and milliseconds of a refocus."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from experiments.methods import Protocol
from experiments.methods.focused import tokens_config
from experiments.quickstart import history
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
    config = tokens_config(opened.model, Protocol(recent=8))
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


def run(arguments: argparse.Namespace) -> list[dict]:
    opened = open_checkpoint(arguments.checkpoint)
    past, length = arguments.past, arguments.tokens
    tokens, _ = history(arguments.checkpoint, opened, past + length)
    return tail(opened, tokens[: past + length], past, arguments.seed)
