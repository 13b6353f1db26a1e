"""The tail policies of law 8 on the same held-out segments of code and books: what the recent
tokens' rows depend on, in recovered and in milliseconds."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time

import numpy as np

from experiments.methods import Protocol
from experiments.methods.focused import tokens_config
from experiments.statistics import interval, ratio
from experiments.suites.base import tail_of_base
from experiments.suites.texts import Stream, streams
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionConfig
from mctx.telemetry import ProgressBar
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.store import Tree

POLICIES = {
    "window": dict(tail="window"),
    "keep": dict(tail="keep"),
    "keep, decided ahead": dict(tail="keep", decide="ahead"),
    "reread 32": dict(tail="reread", reread=32),
    "reread 128": dict(tail="reread", reread=128),
    "reread 512": dict(tail="reread", reread=512),
}
BUDGET, RECENT = 1024, 512  # entries, and how many of them are the most recent tokens
SCORED = 256  # tokens at the end of a segment
INTERVAL = "bootstrap 95 % over packages or authors"
NOTES = [
    f"{BUDGET:,} entries, {RECENT} of them the most recent tokens, the others chosen by the lens; "
    f"a refocus at every block; NLL of the last {SCORED} tokens of every segment.",
    f"Recovered: 0 is the base behind the {RECENT} tokens before those that are scored, 1 the base "
    "behind the whole segment. The milliseconds are of a block of 32 tokens and its refocus.",
]


def run(arguments: argparse.Namespace) -> list[dict]:
    opened = open_checkpoint(arguments.checkpoint)
    past, length = arguments.past, arguments.past + arguments.tokens
    most = length * 2 * arguments.samples
    texts, _ = streams(
        arguments.input, arguments.checkpoint, opened.tokenizer, length * arguments.samples, most
    )
    measured = segments(texts, length, arguments.samples, arguments.seed)
    reader = Reader(opened.model, opened.params)
    config = tokens_config(opened.model, Protocol(BUDGET, RECENT // opened.model.gist.block))
    bar = ProgressBar("streaming", len(measured))
    bar.begin(0)
    records = []
    for i, (source, group, tokens) in enumerate(measured, 1):
        record = {"source": source, "group": group, **bounds(opened, tokens)}
        for name, policy in POLICIES.items():
            settings = dataclasses.replace(config, every=1, capacity=512, **policy)
            record[name], record[f"ms {name}"] = stream(opened, reader, settings, tokens, past)
        records.append(record)
        bar.advance(i)
        bar.report(i, f"all {len(POLICIES)} policies on {group}")
    bar.close()
    return rows(records, arguments.seed)


def segments(
    texts: tuple[Stream, ...], length: int, samples: int, seed: int
) -> list[tuple[str, str, np.ndarray]]:
    """Source, group and tokens [length] of segments that do not overlap, `samples` a text."""
    found = []
    for text in texts:
        rng = np.random.default_rng([seed, *text.group.encode()])
        chosen = rng.choice(len(text.tokens) // length, samples, replace=False)
        found += [
            (text.source, text.group, text.tokens[at * length :][:length]) for at in sorted(chosen)
        ]
    return found


def bounds(opened: Opened, tokens: np.ndarray) -> dict[str, float]:
    """NLL of the last tokens behind the recent ones alone, and behind all."""
    behind = {"none": tokens[-SCORED - RECENT :], "full": tokens}
    base, tail = opened.params["base"], SCORED + 1
    return {
        name: float(tail_of_base(opened.model, tail, base, some[None]).mean())
        for name, some in behind.items()
    }


_names = itertools.count()


def stream(
    opened: Opened, reader: Reader, config: SessionConfig, tokens: np.ndarray, past: int
) -> tuple[float, float]:
    """Mean NLL of the last tokens, and the milliseconds of a block with its refocus."""
    spec = tree_spec(opened.model, opened.fingerprint)
    session = Session(opened, Tree.create(f"memory://tail-{next(_names)}", spec), config, reader)
    session.ingest(tokens[:past])
    step = config.every * opened.model.gist.block
    nll, spent = [], []
    for piece in np.split(tokens[past:], range(step, len(tokens) - past, step)):
        began = time.perf_counter()
        nll.append(session.predict(piece))
        spent.append(time.perf_counter() - began)
    return float(np.concatenate(nll)[-SCORED:].mean()), 1e3 * float(np.median(spent))


def rows(records: list[dict], seed: int) -> list[dict]:
    """Of every source and policy: recovered where it is defined, ΔNLL against the longest reading
    again, and time."""
    found = []
    for source in dict.fromkeys(record["source"] for record in records):
        mine = [record for record in records if record["source"] == source]
        groups = np.array([record["group"] for record in mine])

        def of(name, mine=mine):
            return np.array([record[name] for record in mine])

        gain = of("none") - of("full")
        defined = interval(gain, groups, seed).low > 0
        for name in POLICIES:
            back = ratio(of("none") - of(name), gain, groups, seed)
            delta = interval(of(name) - of("reread 512"), groups, seed)
            told = back._asdict() if defined else dict(value=None)
            found.append(
                {"what": name, "source": source, "unit": "recovered", "n": len(mine)}
                | told
                | {"delta_nll": delta.value, "delta_low": delta.low, "delta_high": delta.high}
                | {"nll": float(of(name).mean()), "ms": float(np.median(of(f"ms {name}")))}
            )
    return found
