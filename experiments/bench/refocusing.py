"""Rows of `bench runtime` about a refocus: what it takes of the tokens between, and whether what
it shows reads as it should."""

from __future__ import annotations

import argparse
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.measure import row
from experiments.bench.subject import Steps, Subject, read_once, seconds
from mctx.models.base import Context, Rows
from mctx.models.wrapped import gist_rows, prefix_rows, read_windows, tail_nll

REREAD = 4  # blocks


def share(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """Lens, allocator, gather and rotation, of the time of the tokens between two refocuses: with
    every cache warm, and with rows of blocks dropped before every other refocus."""
    sizes, block = subject.sizes, subject.model.gist.block
    steps = Steps(subject, sizes.budget, 1)
    steps.seconds(4)
    between = block * 1e3 * np.median([steps.seconds(block) for _ in range(sizes.repetitions)])
    found = []
    again = block * min(REREAD, subject.config().recent)
    for policy in ("keep", "window", "reread"):
        reports = _reports(subject, dict(tail=policy, reread=again))
        for misses, said in ((0, "warm"), (1, "one window missed"), (2, "more windows missed")):
            some = [ms / between for missed, ms in reports if min(missed, 2) == misses]
            if len(some) < 3:
                continue
            most = {0: 0.05, 1: 0.2}.get(misses) if policy != "reread" else None
            what = f"refocus, tail {policy}, {said}"
            goal, reached = (f"≤ {most}", np.median(some) <= most) if most else ("", True)
            unit = f"of {block} tokens"
            found.append(row(what, some, unit, goal, reached, ms=np.median(some) * between))
    found.append(_between(subject, between))
    if subject.model.lens.finders:
        found.append(_between(subject, between, ", what finders see among it", find=True))
    return found


def _between(subject, between, more="", **settings) -> dict:
    """All that a block's end takes, of the time of its steps: ingest, refocus, store."""
    sizes, block = subject.sizes, subject.model.gist.block
    session = subject.session(**settings)
    session.ingest(subject.words(sizes.short))
    pieces = max(1, sizes.tokens // block)
    times = [
        1e3 * seconds(lambda: session.generate(tokens=pieces * block)) / pieces
        for _ in range(sizes.repetitions + 1)
    ][1:]
    shares = np.array(times) / between - 1
    what = f"what a block that is generated takes beyond its steps{more}"
    return row(what, shares, f"of {block} tokens", "", True, ms=np.median(shares) * between)


def _reports(subject, settings) -> list[tuple[int, float]]:
    """Windows that each refocus of a stream missed, and its milliseconds."""
    sizes, block, read, told = subject.sizes, subject.model.gist.block, [0], []

    def heard(session, report):
        missed = session.cache.windows_read - read[-1]
        ms = report["refocus/ms_due"] + report["refocus/ms_assemble"]
        ms += 1e3 * seconds(lambda: session.assembly.buffer)  # what was begun, to its end
        told.append((missed, ms))
        read.append(session.cache.windows_read)
        if len(told) % 2:
            session.cache.drop()

    session = subject.session(**settings)
    session.ingest(subject.words(sizes.short))
    read.append(session.cache.windows_read)
    session.on_refocus = heard
    for i in range(sizes.repetitions):
        session.predict(subject.words(4 * sizes.tokens // block * block, 3 + i))
    return told[2:]


def changed(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """A refocus that swaps four blocks for four others, warm, against reading the window again;
    and what is left of it where it was decided before."""
    sizes, model = subject.sizes, subject.model
    session, turn = subject.session(), itertools.count()
    session.ingest(subject.words(sizes.short))

    def worths(session):
        """The lens looks, as it would; then a table says what is worth most."""
        heads = np.arange(session.config.heads)
        jax.block_until_ready(session.lens(session.focus, session.layouts, heads))
        table = np.linspace(1.0, 2.0, session.blocks)
        table[session.focus.sink + 8 + 4 * (next(turn) % 2) + np.arange(4)] = 9.0
        return table

    session.worths = worths
    layouts = [(session.refocus(), session.layouts)[1] for _ in range(6)][-2:]
    reports = []
    session.on_refocus = lambda _, report: reports.append(report)
    times = [
        seconds(lambda: (session.refocus(), session.assembly.buffer)[1])
        for _ in range(4 * sizes.repetitions)
    ]
    placed = [
        seconds(lambda: (session.place(layout), session.assembly.buffer)[1])  # noqa: B023
        for layout in layouts * (2 * sizes.repetitions)
    ]
    prefill, words = read_once(model), subject.words(session.config.budget, 1)
    params = subject.opened.params
    seconds(lambda: prefill(params, words))
    whole = [seconds(lambda: prefill(params, words)) for _ in range(sizes.repetitions)]
    ratios = np.median(whole) / np.array(times)
    edits = [one["refocus/expanded"] + one["refocus/collapsed"] for one in reports]
    written = float(np.median([one["refocus/rows_written"] for one in reports]))
    entries = session.config.budget
    more = dict(ms=1e3 * float(np.median(times)), edits=float(np.median(edits)), written=written)
    what = f"prefill of {entries:,} entries, of a refocus of 8 changed nodes"
    large = entries >= 4096
    goal, reached = ("≥ 20", np.median(ratios) >= 20) if large else ("", True)
    decided = np.median(whole) / np.array(placed)
    left = dict(ms=1e3 * float(np.median(placed)))
    return [
        row(what, ratios, "×", goal, reached, **more),
        row("the same, decided before", decided, "×", "", True, **left),
    ]


def gate(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """NLL behind what a stream shows, against a reading in which all of it is computed anew."""
    sizes, block = subject.sizes, subject.model.gist.block
    session = subject.session(tail="window")
    words = subject.words(sizes.short + block * sizes.repetitions, 5)
    session.predict(words[: sizes.short])
    differences, absolute = [], []
    for at in range(sizes.short, len(words), block):
        piece = words[at : at + block]
        got, want = session.peek(piece), slowly(subject, session, piece)
        differences.append(abs(float(np.mean(got) - np.mean(want))))
        absolute.append(float(np.abs(got - want).max()))
        session.predict(piece)
    reached = max(differences) <= 1e-3
    what = f"NLL of {block} tokens against a slow reading"
    more = dict(worst_token=max(absolute), worst=max(differences))
    return [row(what, differences, "nats", "≤ 0.001", reached, **more)]


def slowly(subject: Subject, session, tail: np.ndarray) -> np.ndarray:
    """NLL of tail[1:] behind a session's layout, none of whose rows are the session's: windows are
    read and gists emitted anew, joined in order of time, and rotated as the base reads them."""
    model, params = subject.model, subject.opened.params
    block, size = model.gist.block, model.window
    layout = jax.tree.map(lambda x: np.asarray(x)[0], session.shown)
    live = slice(0, int(layout.count))
    nodes = zip(layout.level[live], layout.index[live], layout.shown[live], strict=True)
    parts = [prefix_rows(model, params)]
    for level, index, shown in nodes:
        if shown and level:
            gists = session.tree.gather(int(level), np.array([index]))
            parts.append(_emitted(model, params, gists[None]))
        elif shown:
            start, stop = index * block, (index + 1) * block
            tokens = session.tree.tokens(start // size * size, stop)
            rows = _window(model, params, np.pad(tokens, (0, size - len(tokens)))[None])
            at = start % size
            parts.append(Rows(*(np.asarray(x)[:, :, at : at + block] for x in rows)))
    joined = [np.concatenate(xs, axis=2) for xs in zip(*parts, strict=True)]
    count, room = joined[0].shape[2], len(model.base.prefix) + session.config.budget
    empty = [(0, 0)] * 2 + [(0, room - count)] + [(0, 0)] * 2
    padded = Rows(*(np.pad(x, empty) for x in joined))
    bias = jnp.where(jnp.arange(room) < count, 0.0, -1e30)[None]
    context = Context(padded, jnp.arange(room)[None], bias)
    start = jnp.array([count])
    return np.asarray(_behind(model, params, tail[None], context, start))[0]


@partial(jax.jit, static_argnums=0)
def _window(model, params, tokens):
    return read_windows(model, params, tokens)[0]


@partial(jax.jit, static_argnums=0)
def _emitted(model, params, gists):
    return gist_rows(model, params, gists)


@partial(jax.jit, static_argnums=0)
def _behind(model, params, *behind):
    return tail_nll(model, params, *behind)
