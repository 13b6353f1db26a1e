"""Rows of shown blocks kept from their ingest windows, against reading the blocks again in the
working context, at contiguous and at global positions: on the same segments, behind the same
choices of blocks (design: law 8)."""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.tail import segments
from experiments.statistics import interval, ratio
from experiments.suites.texts import streams
from mctx.errors import UserError
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows, token_nll
from mctx.models.wrapped import Wrapped, prefix_rows, read_windows, tail_nll
from mctx.opened import open_checkpoint
from mctx.telemetry import ProgressBar
from mctx.training.labels import gated_utility

RECENT, SCORED = 512, 256  # tokens that are always read, and of those the last, which count
COUNTS = (4, 8, 16)  # blocks shown
AT_ONCE = 4  # segments in one call
SMALL = 2  # segments of a smoke run
CACHED = "cached"
PLACES = ("contiguous", "global")
METHODS = tuple((made, place) for made in (CACHED, "recomputed") for place in PLACES)
INTERVAL = "bootstrap 95 % over packages or authors"
NOTES = [
    f"Segments of the base's trained window; before the last {RECENT} tokens, blocks of 32 are "
    f"shown or not there at all; NLL of the last {SCORED}. Recovered: 0 is the base behind the "
    "recent tokens alone, 1 the base behind the whole segment.",
    "Cached: rows as the block's ingest window made them. Recomputed: the shown blocks and the "
    "recent tokens are read as one text. Global: every token stands where it does in the segment; "
    "contiguous: what is shown is moved up against the recent tokens.",
    "Hindsight: the blocks of greatest gated gradient on the scored tokens, which no method may "
    "see. ΔNLL is against cached and contiguous, behind the same blocks.",
]


def run(args: argparse.Namespace) -> list[dict]:
    opened = open_checkpoint(args.checkpoint, ("base", "gistnet"), dtype=args.dtype)
    model, length = opened.model, opened.model.base.window
    history = (length - RECENT) // model.window * model.window
    if history <= 0:
        raise UserError(
            f"the base reads {length} tokens: this needs {RECENT} and an ingest window before them."
        )
    length = history + RECENT
    sizes = length * args.samples, length * 2 * args.samples
    texts, _ = streams(args.input, args.checkpoint, opened.tokenizer, *sizes)
    measured = segments(texts, length, args.samples, args.seed)
    measured = measured[:SMALL] if args.smoke else measured
    sources, groups = (np.array([each[i] for each in measured]) for i in (0, 1))
    tokens = np.stack([each for _, _, each in measured])
    drawn = np.random.default_rng(args.seed).random((len(tokens), history // model.gist.block))
    bar = ProgressBar("segments", len(tokens))
    bar.begin(0)
    parts, size = [], min(AT_ONCE, len(tokens))
    for at in range(0, len(tokens), size):
        piece = slice(at, at + size)
        parts.append(measure(model, opened.params, tokens[piece], drawn[piece], size))
        bar.advance(min(at + size, len(tokens)))
        bar.report(at, "every choice of blocks")
    bar.close()
    records = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return rows(records, sources, groups, args.seed)


BOUNDS = {"none": ("recomputed", "contiguous"), "full": ("recomputed", "global")}


def measure(
    model: Wrapped, params: dict, tokens: np.ndarray, drawn: np.ndarray, size: int
) -> dict:
    """Mean NLL [n] of the scored tokens of segments [n, T], by choice of blocks and method.

    drawn: [n, blocks], by which blocks are chosen at random. size: segments read in one call.
    """
    count, blocks = drawn.shape
    fill = ((0, size - count), (0, 0))  # one shape, one program
    tokens, drawn = np.pad(tokens, fill, "edge"), np.pad(drawn, fill, "edge")
    kept, prefix = _read(model, params, blocks, tokens)
    worth = np.asarray(utility(model, params, kept, prefix, tokens))
    nothing = np.zeros((size, blocks), bool)
    shown = {"none": nothing, "full": ~nothing}
    for name, values in {"hindsight": worth, "random": drawn}.items():
        rank = np.argsort(np.argsort(-values, axis=1), axis=1)
        shown |= {f"{name} {n}": rank < n for n in COUNTS if n < blocks}
    shown["all"] = ~nothing
    found = {}
    for choice, some in shown.items():
        for made, place in [BOUNDS[choice]] if choice in BOUNDS else METHODS:
            args = model, params, place == "global", tokens, some
            nll = _cached(*args, kept, prefix) if made == CACHED else _recomputed(*args)
            found[choice, (made, place)] = np.asarray(nll)[:count]
    return found


@functools.partial(jax.jit, static_argnums=(0, 2))
def _read(model, params, blocks, tokens):
    history = blocks * model.gist.block
    return read_windows(model, params, tokens[:, :history])[0], prefix_rows(model, params)


@functools.partial(jax.jit, static_argnums=0)
def utility(
    model: Wrapped, params: dict, kept: Rows, prefix: Rows, tokens: jax.Array
) -> jax.Array:
    """What every block of the history is worth to the scored tokens: [B, T] -> [B, blocks].

    kept: the history's rows from its ingest windows, [L, B, H, K, h]; prefix: [L, 1, P, K, h].
    """
    history = kept.k.shape[2]
    candidates = jnp.arange(history // model.gist.block)
    candidates = jnp.broadcast_to(candidates, (len(tokens), len(candidates)))
    tail = tokens[:, history:]
    counted = jnp.arange(tail.shape[1] - 1) >= tail.shape[1] - 1 - SCORED
    return gated_utility(
        model, params, kept, prefix, candidates, candidates[0, :0], tail, counted
    )


@functools.partial(jax.jit, static_argnums=0)
def _cached(model, params, apart, tokens, shown, kept, prefix):
    p, b, history = prefix.k.shape[2], len(tokens), kept.k.shape[2]
    seen, positions, start = _places(model, apart, shown)
    whole = [
        jnp.concatenate([jnp.broadcast_to(a, (a.shape[0], b, *a.shape[2:])), x], axis=2)
        for a, x in zip(prefix, kept, strict=True)
    ]
    own = jnp.broadcast_to(jnp.arange(p), (b, p))
    bias = jnp.pad(jnp.where(seen, 0.0, NEGATIVE), ((0, 0), (p, 0)))
    context = Context(Rows(*whole), jnp.concatenate([own, p + positions], axis=1), bias)
    return _scored(tail_nll(model, params, tokens[:, history:], context, p + start))


@functools.partial(jax.jit, static_argnums=0)
def _recomputed(model, params, apart, tokens, shown):
    b, p, history = len(tokens), len(model.base.prefix), shown.shape[1] * model.gist.block
    seen, positions, start = _places(model, apart, shown)
    prefix = jnp.broadcast_to(jnp.asarray(model.base.prefix, jnp.int32), (b, p))
    behind = start[:, None] + jnp.arange(tokens.shape[1] - history - 1)
    own = jnp.broadcast_to(jnp.arange(p), (b, p))
    out = model.decoder.apply(
        {"params": params["base"]},
        jnp.concatenate([prefix, tokens[:, :-1]], axis=1),
        jnp.concatenate([own, p + positions, p + behind], axis=1),
        valid=jnp.concatenate([own >= 0, seen, behind >= 0], axis=1),
    )
    hidden = out.hidden[:, p + history :]
    return _scored(token_nll(params["base"], hidden, tokens[:, history + 1 :]))


def _places(model, apart, shown):
    """Of the history's tokens: which are seen, and where they stand [B, H]; where the rest begins
    [B]. Positions are counted from the prefix's end on; `apart`: with what is between them."""
    seen = jnp.repeat(shown, model.gist.block, axis=1)
    rank = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    positions = jnp.where(apart, jnp.arange(seen.shape[1]), rank)
    return seen, positions, jnp.where(apart, seen.shape[1], seen.sum(axis=1))


def _scored(nll):
    return nll[:, -SCORED:].mean(axis=1)


def rows(records: dict, sources: np.ndarray, groups: np.ndarray, seed: int) -> list[dict]:
    """Of every source, choice and method: recovered where it is defined, and ΔNLL."""
    found = []
    for source in dict.fromkeys(sources.tolist()):
        mine = sources == source
        bounds = {name: records[name, method][mine] for name, method in BOUNDS.items()}
        gain, within = bounds["none"] - bounds["full"], groups[mine]
        defined = interval(gain, within, seed).low > 0
        for (choice, method), values in records.items():
            if choice in BOUNDS:
                continue
            nll = values[mine]
            back = ratio(bounds["none"] - nll, gain, within, seed)
            best = records[choice, METHODS[0]][mine]
            delta = interval(nll - best, within, seed)
            told = back._asdict() if defined else dict(value=None)
            found.append(
                {"what": ", ".join(method), "source": source, "shown": choice}
                | {"unit": "recovered", "n": int(mine.sum())} | told
                | {"delta_nll": delta.value, "delta_low": delta.low, "delta_high": delta.high}
                | {"nll": float(nll.mean())}
            )
    return found
