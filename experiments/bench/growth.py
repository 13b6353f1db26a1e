"""Rows of `bench growth`: what a token costs against the length of the history behind it."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from experiments.bench.measure import row
from experiments.bench.runtime import ON_CPU, ON_DEVICE, SMOKE
from experiments.bench.subject import Sizes, Steps, Subject, on_device, seconds

INTERVAL = "quartiles of the repetitions"
NOTES = [
    "Tokens, gists and full attention's keys and values are drawn by chance. A session's token "
    "holds its share of the refocus, of ingest and of the store.",
    "MiB held: on the device, weights and all. MiB read a token: weights and rows that a step "
    "reads, and a session's keys, rotated once a refocus.",
    "The sliding window reads as many rows as the session, and forgets what is before them. Full "
    "attention ends where its rows would not fit.",
]
MIB = 2**20


class Span(NamedTuple):
    """Lengths of history, and the most bytes of rows that full attention may take."""

    sizes: Sizes
    lengths: tuple[int, ...]
    most: int


SMALL = Span(SMOKE, (1024, 2048), 2**30)
CPU = Span(ON_CPU, tuple(2**n for n in (13, 14, 15, 16, 18)), 2**29)
DEVICE = Span(ON_DEVICE, (*(2**n for n in (13, 15, 17, 20)), 10 * 2**20), 36 * 2**30)
MORE = {
    "panels": {
        "value": "milliseconds per token",
        "held_mib": "MiB held on the device",
        "read_mib": "MiB read per token",
    },
    "across": "history",
}


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows so far, after every length; none but the first is begun when --seconds have passed."""
    began = time.perf_counter()
    span = SMALL if args.smoke else CPU if jax.default_backend() == "cpu" else DEVICE
    subject, found = Subject(args, span.sizes), []
    weights = on_device()
    for length in span.lengths:
        if found and time.perf_counter() - began > args.seconds:
            print(f"a history of {length:,} is left out: --seconds have passed.", file=sys.stderr)
            continue
        window = Steps(subject, min(span.sizes.budget, length), 1)
        found = [*found, _session(subject, length, weights),
                 _plain(subject, "sliding window", window, length, weights)]
        del window
        bytes_a_row = _bytes_a_row(subject)
        if length * bytes_a_row <= span.most:
            whole = Steps(subject, length, 1)
            found.append(_plain(subject, "full attention", whole, length, weights))
            del whole
        yield found


def _session(subject: Subject, length: int, weights: int) -> dict:
    gc.collect()  # the session of before
    sizes, before = subject.sizes, on_device()
    session = subject.session(subject.history(length))
    session.generate(tokens=sizes.tokens)
    session.cache.take_up(wait=True)  # rows of windows just read lie there until they are here
    held = on_device() - before
    times = [
        seconds(lambda: session.generate(tokens=sizes.tokens)) / sizes.tokens
        for _ in range(sizes.repetitions)
    ]
    rows = sum(x.nbytes for x in session.assembly.buffer.rows)
    rows += sum(x.nbytes for x in (session.tail.rows.rotated, session.tail.rows.v))
    rotated = session.assembly.buffer.rows.k.nbytes / session.interval
    return _told("MegaContext", length, times, weights + held, _base(subject) + rows + rotated)


def _plain(subject: Subject, what: str, steps: Steps, length: int, weights: int) -> dict:
    """Steps alone: fewer of them behind a longer history, which takes full attention longer."""
    steps.seconds(2)
    count = max(4, subject.sizes.tokens * subject.sizes.budget // length)
    times = [steps.seconds(count) for _ in range(subject.sizes.repetitions)]
    return _told(what, length, times, weights + steps.bytes, _base(subject) + steps.bytes)


def _told(what: str, length: int, times: list[float], held: float, read: float) -> dict:
    told = row(what, 1e3 * np.array(times), "ms", "", True)
    facts = {name: told[name] for name in ("value", "unit", "low", "high")}
    sizes = {"held_mib": held / MIB, "read_mib": read / MIB}
    return {"what": what, "history": length, **facts, **sizes, "n": told["n"]}


def _base(subject: Subject) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(subject.opened.params["base"]))


def _bytes_a_row(subject: Subject) -> int:
    c, number = subject.model.base, np.dtype(jax.numpy.dtype(subject.model.dtype)).itemsize
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * number
