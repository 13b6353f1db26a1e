"""The rows of `bench runtime`: what a token, a question and a refocus cost."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from experiments.bench import stock
from experiments.bench.measure import row
from experiments.bench.refocusing import changed, gate, share
from experiments.bench.subject import (
    Sizes,
    Steps,
    Subject,
    bandwidth,
    hidden_of_windows,
    on_device,
    read_once,
    seconds,
)
from mctx.errors import UserError
from mctx.models.base import count_parameters
from mctx.runtime import Session
from mctx.tree.ingest import BATCH

INTERVAL = "quartiles of the repetitions"
NOTES = [
    "Tokens are drawn by chance, and so are the gists of the long histories, which nobody read; "
    "every window that is opened is read by the base. A token's time holds its share of the "
    "refocus, of ingest and of the store, unless it says otherwise.",
    "Ratios are of neighbouring repetitions in one process; those of full attention against the "
    "median of ours. Full attention is the same step over rows that hold the whole history, "
    "without refocus; and LlamaForCausalLM of the same shape with SDPA, in a process of its own, "
    "whose cache is filled with numbers drawn by chance.",
]
SMOKE = Sizes(4096, 1024, 1024, 1024, 2048, 256, 32, 2, (1, 2), 2, 16)
ON_CPU = Sizes(2**18, 2**18, 2**13, 2**14, 2**13, 1024, 128, 7, (1, 2, 4, 8), 8, 256)
ON_DEVICE = Sizes(10 * 2**20, 2**20, 2**13, 2**17, 2**16, 4096, 128, 9, (1, 8, 32), 8, 4096)
MIB = 2**20
COLUMNS = ("what", "value", "unit", "low", "high", "goal", "reached", "n")


def token(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """A generated token and the memory held, behind a long history against a short one."""
    sizes, held, made = subject.sizes, [], []
    for length in (sizes.short, sizes.long, sizes.short):  # the first makes what all share
        gc.collect()  # sessions of before
        before = on_device()
        made.append(subject.session(subject.history(length)))
        made[-1].generate(tokens=sizes.tokens)
        made[-1].cache.take_up(wait=True)  # rows of windows just read lie there until they are here
        held.append(on_device() - before)
    made, held = made[1:], held[1:]
    times = np.array(
        [[_generating(s, sizes.tokens) for s in made] for _ in _times(subject)]
    )
    per_token, ratios = 1e3 * times / sizes.tokens, times[:, 0] / times[:, 1]
    windows = [s.cache.windows_read / s.refocuses for s in made]
    names = [f"token, history of {n:,}" for n in (sizes.long, sizes.short)]
    cached, most = [s.cache.nbytes / MIB for s in made], made[0].config.cache_bytes / MIB
    return [
        row(names[0], per_token[:, 0], "ms", "", True, windows_a_refocus=windows[0]),
        row(names[1], per_token[:, 1], "ms", "", True, windows_a_refocus=windows[1]),
        row("the one against the other", ratios, "×", "≤ 1.05", np.median(ratios) <= 1.05),
        row("device memory, likewise", [held[0] / held[1]], "×", "= 1", held[0] == held[1]),
        row("rows cached by the host", cached[:1], "MiB", f"≤ {most:g}", cached[0] <= most),
    ]


def full(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """Against full attention with a cache of keys and values: this code's, and `transformers`'."""
    sizes, found = subject.sizes, []
    cases = [(lanes, sizes.full) for lanes in (1, sizes.beside)]
    # First, in a process of its own: later this one holds the memory.
    stocks = stock.measured(subject.model, cases, 8, 3)
    for lanes, length in cases:
        ours, held = _side_by_side(subject, lanes)
        own = _own_full(subject, lanes, length)
        mine = [stock.Told(lanes, "this code", *own)]
        for told in mine + [one for one in stocks if one.lanes == lanes]:
            said = f"full attention over {length:,}, batch {lanes}, {told.kind}"
            found += _against(said, told, np.median(ours), held, lanes >= 8 and length >= 2**17)
    return found


def _side_by_side(subject, lanes) -> tuple[list[float], int]:
    """Seconds of a token of so many sessions at once, repeated; bytes of their rows."""
    sizes = subject.sizes
    batch = subject.batch([subject.history(sizes.short) for _ in range(lanes)])
    asks = [dict(tokens=sizes.tokens)] * lanes
    batch.generate(asks)
    times = [seconds(lambda: batch.generate(asks)) / sizes.tokens for _ in _times(subject)]
    return times, batch.sessions[0].lanes.nbytes


def _own_full(subject, lanes, length) -> tuple:
    """Seconds of a token, repeated; bytes of keys and values; or why they are not known."""
    try:
        whole = Steps(subject, length, lanes)
        whole.seconds(2)
        return [whole.seconds(8) for _ in _times(subject)], whole.bytes
    except jax.errors.JaxRuntimeError as error:
        return (), 0, str(error).splitlines()[0][:200]


def _against(said, told, ours, held, judged) -> list[dict]:
    goals = ("≥ 10", "≥ 20") if judged else ("", "")
    if told.error:
        nothing = dict(value=None, unit="× ours", goal=goals[0], reached=None, n=0)
        return [{"what": f"token of {said}: {told.error}", **nothing}]
    ratios, memory = np.array(told.seconds) / ours, told.bytes / held
    facts = dict(ms=1e3 * float(np.median(told.seconds)), ours_ms=1e3 * ours)
    return [
        row(f"token of {said}", ratios, "× ours", goals[0], np.median(ratios) >= 10, **facts),
        row(f"keys and values of {said}", [memory], "× ours", goals[1], memory >= 20),
    ]


def question(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """Seconds to the first token of an answer, against the base on question and recent text.

    The question is of another subject: what it opens is cold. One session waits for it, the other
    shows gists until the windows are read.
    """
    sizes, asked = subject.sizes, 2 * subject.model.gist.block
    prefill, params, found = read_once(subject.model), subject.opened.params, []
    for cold, goal in ("async", "≤ 1.5"), ("sync", ""):
        session = subject.session(subject.history(sizes.middle), cold=cold)
        recent = session.config.recent * subject.model.gist.block
        alone = subject.words(recent + asked, 1)
        ours, ratios = [], []
        for i in range(sizes.repetitions + 1):
            before, words = session.cache.windows_read, subject.words(asked, 2 + i)
            said = session.stream(words, tokens=1)
            ours.append(seconds(lambda: next(said)))  # noqa: B023
            said.close()  # it commits, which nobody waits for who reads the first token
            ratios.append(ours[-1] / seconds(lambda: prefill(params, alone)))  # noqa: B023
        ratios, last = ratios[1:], session.cache.windows_read - before
        what = f"first token, {asked} tokens asked behind {sizes.middle:,}, {cold}"
        found += [
            row(what, 1e3 * np.array(ours[1:]), "ms", "", True, windows_of_the_last=last),
            row(f"the same, {cold}", ratios, f"× the base on {recent + asked}", goal,
                not goal or np.median(ratios) <= 1.5),
        ]
    return found


def ingest(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """Tokens a second that are ingested behind nothing and behind a long history, and stored; and
    of those that the base alone would read, in the same windows and without its head."""
    sizes = subject.sizes
    sessions = subject.session(), subject.session(subject.history(sizes.long))
    words = subject.words(sizes.ingested - sizes.ingested % (BATCH * subject.model.window))
    times = np.array(
        [[seconds(lambda: _fed(s, words)) for s in sessions] for _ in _times(subject, 1)]  # noqa: B023
    )[1:]
    rates, ratios = len(words) / times, times[:, 0] / times[:, 1]
    alone = np.array([_read_alone(subject, words) for _ in _times(subject, 1)])[1:]
    shares = np.median(alone) / times[:, 0]
    goal = "≥ 0.75" if jax.default_backend() != "cpu" else ""
    return [
        row("ingest at the beginning", rates[:, 0], "tokens/s", "", True),
        row("of the base alone over the same windows", shares, "×", goal,
            np.median(shares) >= 0.75, base_tokens_per_s=len(words) / np.median(alone)),
        row(f"ingest behind {sizes.long:,} tokens, of that", ratios, "×", "≥ 0.95",
            np.median(ratios) >= 0.95),
    ]


def _fed(session: Session, words: np.ndarray) -> None:
    """As `Session.ingest`, but for the refocus at its end, which is one a call."""
    for blocks in session.ingestion.feed(words, session.rows_wanted):
        session.put(blocks)
    session.storing.now()


def _read_alone(subject: Subject, words: np.ndarray) -> float:
    """Seconds in which the base reads windows as ingest does, and nothing else is made of them."""
    read, params = hidden_of_windows(subject.model), subject.opened.params
    windows = words.reshape(-1, BATCH, subject.model.window)
    return seconds(lambda: [read(params, some) for some in windows])


def throughput(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """Tokens a second of all sessions together, against their number."""
    sizes, found, one = subject.sizes, [], None
    for lanes in sizes.batches:
        batch = subject.batch([subject.history(sizes.short) for _ in range(lanes)])
        asks = [dict(tokens=sizes.tokens)] * lanes
        batch.generate(asks)
        times = [seconds(lambda: batch.generate(asks)) for _ in _times(subject)]  # noqa: B023
        rates = lanes * sizes.tokens / np.array(times)
        one = one or float(np.median(rates))
        more = dict(times_one=float(np.median(rates)) / one)
        found.append(row(f"{lanes} sessions", rates, "tokens/s", "", True, **more))
    return found


def limit(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """A step of decoding against the time to read weights and rows once."""
    steps, sizes = Steps(subject, subject.sizes.budget, 1), subject.sizes
    weights = sum(x.nbytes for x in jax.tree.leaves(subject.opened.params["base"]))
    least = (weights + steps.bytes) / bandwidth(sizes.megabytes, sizes.repetitions)
    steps.seconds(4)
    times = np.array([steps.seconds(sizes.tokens) for _ in _times(subject)])
    shares = least / times
    size = count_parameters(subject.opened.params["base"]) / 1e9
    on_device = jax.default_backend() != "cpu" and size >= 0.5
    return [
        row("step of decoding alone", 1e3 * times, "ms", "", True),
        row("of the bandwidth that a sum reaches", shares, "×", "≥ 0.6" if on_device else "",
            np.median(shares) >= 0.6 if on_device else True, billion_parameters=size),
    ]


def _generating(session: Session, tokens: int) -> float:
    return seconds(lambda: session.generate(tokens=tokens))


def _times(subject: Subject, more: int = 0) -> range:
    return range(subject.sizes.repetitions + more)


PARTS = {
    "token": token,
    "full": full,
    "question": question,
    "share": share,
    "changed": changed,
    "ingest": ingest,
    "throughput": throughput,
    "limit": limit,
    "gate": gate,
}


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of all parts, or of those in --only, in that order: those known so far, again and again.

    A part is not begun when --seconds have passed.
    """
    wanted = [name for name in args.only.split(",") if name] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    began, rows = time.perf_counter(), []
    # Another process wants memory of the same device (stock.py).
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = SMOKE if args.smoke else ON_CPU if jax.default_backend() == "cpu" else ON_DEVICE
    subject = Subject(args, sizes)
    for name in wanted:
        spent = time.perf_counter() - began
        if spent > args.seconds:
            print(f"{name} is left out: {spent:.0f} seconds have passed.", file=sys.stderr)
            continue
        rows = rows + [_told(found) for found in PARTS[name](subject, args)]
        after = time.perf_counter() - began
        print(f"{name}: {after - spent:.0f} seconds", file=sys.stderr)
        gc.collect()
        yield rows
    if not rows:
        raise UserError(f"{args.seconds:g} seconds are too few for any part: give more --seconds.")


def _told(found: dict) -> dict:
    """A row whose own facts stand in one column."""
    own = [f"{name.replace('_', ' ')} {found[name]:.3g}" for name in found if name not in COLUMNS]
    return {name: found[name] for name in COLUMNS if name in found} | {"detail": ", ".join(own)}
