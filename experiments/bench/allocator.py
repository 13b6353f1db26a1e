"""The rows of `bench allocator`: how near the exact optimum, how fast, how calm."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments.bench.measure import row
from experiments.bench.optimum import optimum
from mctx.errors import UserError
from mctx.focus import allocator, layout
from mctx.focus.layout import FocusConfig, Layout
from mctx.focus.plan import held_open, refocus_known, sizes
from mctx.runtime import focusing

INTERVAL = "5 % to 95 % of the cases, or quartiles of the repetitions"
NOTES = [
    "Each case is one refocus from the coarsest layout, with unlimited edits, told every node's "
    "gain; the optimum is found by dynamic programming over all legal layouts.",
    "Calm: utilities of blocks are random walks; residency is how many refocuses a block that "
    "was opened stays open.",
]

BOTH = (True, True)
# Fanouts, blocks of history, levels shown, budgets as shares of full detail: 20 × 500 cases.
FAMILIES = [
    ((4, 3, 2), 26, BOTH, (0.25, 0.5)),
    ((4, 3, 2), 50, BOTH, (0.15, 0.35)),
    ((8, 4, 4), 70, BOTH, (0.1, 0.3)),
    ((8, 2, 2, 2), 45, BOTH, (0.12, 0.6)),
    ((16, 4, 4), 50, BOTH, (0.1, 0.4)),
    ((8, 8), 60, BOTH, (0.15, 0.3)),
    ((4, 4, 4), 100, BOTH, (0.1, 0.45)),
    ((32, 8, 8), 100, BOTH, (0.1, 0.2)),
    ((8, 4, 2, 2), 64, BOTH, (0.2, 0.6)),
    ((6, 5, 3), 47, (True, False), (0.12, 0.35)),
]


class Cases(NamedTuple):
    """Cases of one shape."""

    cfg: FocusConfig
    blocks: int
    gains: list[np.ndarray]  # by level from 1, [cases, nodes] nats of opening a node


def families(number: int, seed: int) -> Iterator[Cases]:
    """The cases, `number` of each of 20 shapes; sinks and two recent blocks are always tokens."""
    for place, (fanouts, blocks, shown, shares) in enumerate(FAMILIES):
        show = shown[:1] + shown[1:] * len(fanouts)
        for share in shares:
            cfg = FocusConfig(
                fanouts=fanouts,
                show=show,
                recent=2,
                budget=int(share * blocks * fanouts[0]),
                capacity=blocks + 1,
                max_edits=2 * blocks,
            )
            layout.validate(cfg, blocks)
            rng = np.random.default_rng([seed, place, round(100 * share)])
            yield Cases(cfg, blocks, valleys(rng, cfg, blocks, number))


def valleys(rng: np.random.Generator, cfg: FocusConfig, blocks: int, number: int):
    """Gains by level from 1, [number, nodes]: blocks are worth something, some very much; to
    open a wider node costs up to a few of them, or nothing, or now and then is a gain itself."""
    counts = [blocks // int(span) for span in cfg.spans]
    weight = rng.integers(1, 4, (number, 1))  # of the tail
    some = rng.random((number, counts[1])) < rng.choice([0.15, 0.4, 1.0], (number, 1))
    gains = [rng.exponential(size=(number, counts[1])) ** weight * some - 0.05]
    for count in counts[2:]:
        depth = rng.choice([0.0, 0.3, 1.0], (number, 1))
        gains.append(depth * rng.normal(-1.0, 0.7, (number, count)))
    return gains


def shares(cases: Cases, **compiled) -> np.ndarray:
    """Utility reached from the coarsest layout, of the optimum: [cases]; 1 where both are 0.

    Args:
      compiled: options of `jax.jit`.
    """
    cfg, blocks = cases.cfg, cases.blocks
    dense = padded(cases)

    @partial(jax.jit, **compiled)
    def reach(gains):
        start = layout.initial(cfg, blocks)
        return jax.lax.map(
            lambda one: refocus_known(cfg, start, one, blocks, 1)[0], gains, batch_size=25
        )

    layouts = jax.device_get(reach(dense))
    for one in range(0, len(cases.gains[0]), 50):
        layout.check(cfg, jax.tree.map(lambda x: x[one], layouts), blocks)  # noqa: B023
    best, got = optimum(cfg, blocks, cases.gains), utility(cases, layouts)
    return np.where(best > 1e-6, got / np.maximum(best, 1e-6), 1.0)


def padded(cases: Cases) -> list[np.ndarray]:
    """The gains in the shapes that a plan wants, [cases, nodes] by level from 1."""
    counts = sizes(cases.cfg, cases.blocks)[1:]
    return [
        np.pad(gain, ((0, 0), (0, count - gain.shape[1]))).astype(np.float32)
        for gain, count in zip(cases.gains, counts, strict=True)
    ]


def utility(cases: Cases, layouts: Layout) -> np.ndarray:
    """Sum of the gains of the nodes that layouts open, less those that every layout opens."""
    cfg, blocks = cases.cfg, cases.blocks
    counts = [gain.shape[1] for gain in cases.gains]
    found = jax.vmap(lambda one: held_open(cfg, one, counts))(layouts)
    total = 0.0
    for span, gain, is_open in zip(cfg.spans[1:], cases.gains, found, strict=True):
        start = np.arange(gain.shape[1]) * int(span)
        chosen = (start >= cfg.sink) & (start + span <= blocks - cfg.recent)
        total = total + np.sum(np.where(chosen & np.asarray(is_open), gain, 0.0), axis=1)
    return total


def near(args: argparse.Namespace) -> list[dict]:
    """Mean and worst share of the optimum's utility."""
    found = np.concatenate(
        [shares(cases) for cases in families(10 if args.smoke else 500, args.seed)]
    )
    low, high = (float(q) for q in np.quantile(found, [0.05, 0.95]))
    mean, worst = float(found.mean()), float(found.min())
    unit, n = "of the optimum's utility", len(found)
    return [
        dict(what="mean", value=mean, unit=unit, low=min(low, mean), high=max(high, mean), n=n)
        | dict(goal="≥ .98", reached=mean >= 0.98),
        dict(what="worst", value=worst, unit=unit, n=n, goal="≥ .90", reached=worst >= 0.9),
    ]


def fast(args: argparse.Namespace) -> list[dict]:
    """Milliseconds of a refocus of eight heads, each of 4,096 entries and rows, of ≥ 64 edits."""
    heads, rows = 8, 256 if args.smoke else 4096
    cfg = FocusConfig(budget=rows, capacity=rows, max_edits=64)
    blocks = 14 * rows
    rng = np.random.default_rng(args.seed)
    start = focusing.start(cfg, heads, np.int32(blocks))
    shape = (2, heads, rows)

    @jax.jit
    def step(layouts, scores, now):
        return jax.vmap(partial(allocator.refocus, cfg), in_axes=(0, 0, 0, None, None))(
            layouts, *scores, blocks, now
        )

    layouts, spent, edits = start, [], []
    for now in range(6 if args.smoke else 60):
        scores = jax.block_until_ready(jnp.asarray(rng.exponential(4.0, shape), jnp.float32))
        began = time.perf_counter()
        layouts, done = jax.block_until_ready(step(layouts, scores, np.int32(now)))
        spent.append(1e3 * (time.perf_counter() - began))
        edits.append(int(np.min(done.expanded + done.collapsed)))
    on = jax.default_backend()
    most = 15.0 if on == "cpu" else 0.5
    what = f"refocus of {heads} × {rows} entries on {on}"
    reached = float(np.median(spent[4:])) <= most and np.median(edits[4:]) >= 64
    goal = f"≤ {most:g}"
    more = dict(edits=float(np.median(edits[4:])))
    return [row(what, spent[4:], "ms", goal, reached, **more), _compiling()]


def _compiling() -> dict:
    """CPU seconds of tracing and compiling what one head of a session runs."""
    cfg = FocusConfig(fanouts=(32, 8, 8), budget=512, capacity=256, recent=4)
    layouts = focusing.start(cfg, 1, np.int32(100))
    scores = focusing.Scores(*np.zeros((2, 1, cfg.capacity), np.float32))
    cached = jax.config.jax_enable_compilation_cache
    _use_cache(False)
    began = time.process_time()
    focusing.edit.lower(cfg, layouts, scores, np.int32(100), np.int32(1)).compile()
    spent = time.process_time() - began
    _use_cache(cached)
    return row("compiling it for one head", [spent], "CPU s", "", True)


def _use_cache(wanted):
    jax.config.update("jax_enable_compilation_cache", wanted)
    compilation_cache.reset_cache()  # whether it is used is decided once


def calm(args: argparse.Namespace) -> list[dict]:
    """Edits of a refocus and residency, by hysteresis and cooldown, as utilities wander."""
    steps, blocks = (8, 26) if args.smoke else (300, 70)
    settings = [(0.0, 0), (0.05, 0), (0.2, 0), (0.0, 4), (0.0, 16)][: 2 if args.smoke else 5]
    rng = np.random.default_rng(args.seed)
    walk = np.cumsum(rng.normal(size=(steps, blocks)), axis=0, dtype=np.float32) * 0.3
    worth = np.abs(walk + 2 * rng.normal(size=blocks)).astype(np.float32)
    base, rows = None, []
    for hysteresis, cooldown in settings:
        cfg = FocusConfig(
            fanouts=(8, 4, 4),
            recent=2,
            budget=3 * blocks,
            capacity=blocks + 1,
            hysteresis=hysteresis,
            cooldown=cooldown,
        )
        edits, tokens, gained = _wander(cfg, blocks, worth)
        left = np.sum(tokens[:-1] & ~tokens[1:])
        base = base or gained
        rows.append(
            row(
                f"hysteresis {hysteresis:g}, cooldown {cooldown}",
                edits[1:],
                "edits a refocus",
                "",
                True,
                mean=float(np.mean(edits[1:])),
                residency=float(np.sum(tokens) / max(1, left)),
                utility=gained / base,
            )
        )
    return rows


def _wander(cfg, blocks, worth):
    """Edits [steps], blocks that are tokens [steps, blocks], and the utility gained in all."""
    counts = sizes(cfg, blocks)[1:]
    gains = [np.pad(worth, ((0, 0), (0, counts[0] - blocks)))]
    gains += [np.full((len(worth), count), -0.5, np.float32) for count in counts[1:]]

    @jax.jit
    def run(gains):
        def once(state, now_gain):
            now, gain = now_gain
            state, edits = refocus_known(cfg, state, gain, blocks, now)
            return state, (edits.expanded + edits.collapsed, state)

        at = jnp.arange(1, len(worth) + 1), gains
        return jax.lax.scan(once, layout.initial(cfg, blocks), at)[1]

    edits, layouts = jax.device_get(run(gains))
    count = [gain.shape[1] for gain in gains]
    tokens = np.asarray(jax.vmap(lambda one: held_open(cfg, one, count)[0])(layouts))
    whole = [gain[:, : blocks // int(s)] for gain, s in zip(gains, cfg.spans[1:], strict=True)]
    gained = utility(Cases(cfg, blocks, whole), layouts)
    return edits, tokens[:, cfg.sink : blocks - cfg.recent], float(gained.sum())


PARTS = {"near": near, "fast": fast, "calm": calm}


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all parts, or of those in --only."""
    wanted = [name for name in args.only.split(",") if name] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    return [found for name in wanted for found in PARTS[name](args)]
