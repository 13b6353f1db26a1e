"""Whether labels and the lens say what a block is worth: against exact counterfactuals.

Of single blocks it is measured what showing them gains and what collapsing them costs, each by
reading the continuation once more; against this stand gated gradients of the same tokens, and what
the lens predicts without having seen them (design: LensNet).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.statistics import interval, ratio
from experiments.suites import Suite
from experiments.suites.blocks import (
    Protocol,
    gradient,
    lens_sees,
    lens_worth,
    nll_behind,
    nodes_shown,
    scored_places,
)
from experiments.suites.rows import in_batches
from experiments.suites.segments import Segments
from experiments.suites.views import View, row
from mctx.focus.bank import Bank, context_of, make_bank
from mctx.models.wrapped import Wrapped, tail_nll
from mctx.opened import Opened
from mctx.training.labels import EPSILON

EDITS = ("shown", "expanded", "hidden", "collapsed")
JUDGED = ("lens", "gradient")  # whose nats are held against those that are realised
RANKED_ONLY = ("recency", "query gradient")  # whose zero means nothing
HELPS = "every block helps"
BINS, NATS = 8, "nats"


@dataclasses.dataclass(frozen=True)
class Single(Protocol):
    """The lens foresees 128 tokens (experiments/configs/pico_lens.py), so these are scored.

    `singles`: blocks that are measured exactly, evenly apart.
    """

    scored: int = 128
    singles: int = 16


STANDARD = Single()


def measure(
    opened: Opened, segments: Segments, seed: int, protocol: Single = STANDARD
) -> dict[str, list[dict]]:
    """Rows of the views rank, sign, weighed and calibration, in one result."""
    tokens, groups = segments.tokens, segments.units
    blocks = protocol.shape(opened.model).blocks
    which = np.arange(protocol.singles) * blocks // protocol.singles
    exact = counterfactuals(opened, protocol, tokens, which)
    predicted = {
        name: worth[:, which] for name, worth in predictions(opened, protocol, tokens).items()
    }
    rows = [
        row
        for edit, realised in exact.items()
        for name, guess in predicted.items()
        for row in agreement(name, edit, guess, realised, groups, seed)
    ]
    for name in JUDGED:
        rows += calibration(name, predicted[name], exact["shown"], groups, seed)
    return {"labels": rows}


def counterfactuals(
    opened: Opened, protocol: Single, tokens: np.ndarray, which: np.ndarray
) -> dict[str, np.ndarray]:
    """Nats over the scored tokens that single blocks are worth, [n, len(which)] by edit:

    shown: as tokens, all others silent; expanded: from its gist, all others gists; hidden and
    collapsed: what it costs to silence it, or to show its gist, where all others are tokens.
    """
    shape = protocol.shape(opened.model)
    one = np.arange(shape.blocks) == np.append(-1, which)[:, None]  # the first: no block
    found = {}
    for names, chosen, most, sign in ((EDITS[:2], one, 1, 1), (EDITS[2:], ~one, None, -1)):
        shown = np.concatenate([nodes_shown(shape, chosen, gists) for gists in (False, True)])
        every = np.broadcast_to(shown, (len(tokens), *shown.shape))
        nll = nll_behind(opened, protocol, tokens, every, most).sum(axis=-1, dtype=np.float64)
        for name, part in zip(names, np.split(nll, 2, axis=1), strict=True):
            found[name] = sign * (part[:, :1] - part[:, 1:])
    return found


def predictions(
    opened: Opened, protocol: Single, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """What each way of foreseeing says of every block: [n, blocks], in nats where it has them."""
    of = functools.partial(_predictions, opened.model, protocol, opened.params)
    found = in_batches(of, tokens)
    some = found["lens"].shape
    found["recency"] = np.broadcast_to(np.arange(some[1]), some)
    return found | {HELPS: np.ones(some)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predictions(model, protocol, params, tokens):
    history, seen, tail = protocol.parts(tokens)
    bank, counts = make_bank(model, params, history), scored_places(protocol)
    label = functools.partial(gradient, model, params, protocol, bank)
    swap = functools.partial(exchange, model, params, protocol, bank, tail, counts)
    sees = lens_sees(model, params, protocol, bank, tokens)
    return {
        "lens": lens_worth(model, params, protocol.shape(model), *sees),
        "gradient": label(tail, counts, EPSILON),
        "gradient at 1": label(tail, counts, 1.0),
        "exchange at 0.1": swap(0.1),
        "exchange at 0.9": swap(0.9),
        "query gradient": label(seen, np.ones(protocol.seen - 1)),
    }


def exchange(
    model: Wrapped,
    params: dict,
    protocol: Single,
    bank: Bank,
    tail: jax.Array,
    counts: np.ndarray,
    gate: float,
) -> jax.Array:
    """Signed labels (design: LensNet): every block's tokens gated by g and its gist by 1 − g; near
    g = 0 the slope is what expanding it is worth, near 1 what collapsing it costs: [B, blocks]."""
    shape = protocol.shape(model)
    shown = jnp.broadcast_to(shape.node_level <= 1, (len(tail), len(shape.node_level)))

    def total(gates):
        logs = jnp.concatenate([jnp.log(gates), jnp.log1p(-gates)], axis=1)
        logs = jnp.pad(logs, ((0, 0), (0, shown.shape[1] - logs.shape[1])))
        nll = tail_nll(model, params, tail, *context_of(shape, bank, shown, logs))
        return jnp.sum(nll * counts)

    return -jax.grad(total)(jnp.full((len(tail), shape.blocks), gate))


# -- what is told of it ----------------------------------------------------------------------


def agreement(
    name: str, edit: str, guess: np.ndarray, exact: np.ndarray, groups: np.ndarray, seed: int
) -> list[dict]:
    """Rows of one way of foreseeing and one edit; guess and exact: [n, W]."""
    found = {}
    if name != HELPS:
        found["rank"] = interval(spearman(guess, exact), groups, seed)
    if name not in RANKED_ONLY:
        right = (guess > 0) == (exact > 0)
        weight = np.abs(exact)
        found["sign"] = interval(right.mean(axis=1), groups, seed)
        found["weighed"] = ratio((right * weight).sum(1), weight.sum(1), groups, seed)
    return [
        row(view, name, VIEWS[view].unit, told, len(exact), edit=edit)
        for view, told in found.items()
    ]


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation of each row, [n, W] and [n, W] -> [n]; no ties are looked for."""
    def ranks(x):
        order = np.argsort(np.argsort(x, axis=1, kind="stable"), axis=1)
        return order - (x.shape[1] - 1) / 2

    a, b = ranks(one), ranks(other)
    return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))


def calibration(
    name: str, guess: np.ndarray, exact: np.ndarray, groups: np.ndarray, seed: int
) -> list[dict]:
    """Rows of the means of both in bins of as many blocks each, the least predicted first."""
    order = np.argsort(guess, axis=None, kind="stable")
    of = np.repeat(groups, guess.shape[1])
    rows = []
    for number, where in enumerate(np.array_split(order, BINS), 1):
        for what, values in (("predicted", guess), ("realised", exact)):
            told = interval(values.ravel()[where].astype(np.float64), of[where], seed)
            one = row("calibration", what, NATS, told, len(where), bin=number, of=name)
            if len(set(of[where])) < 2:  # one text has no interval
                del one["low"], one["high"]
            rows.append(one)
    return rows


VIEWS = {
    "rank": View("Rank correlation with exact ΔNLL (Spearman's, of each text)", "edit", "ρ"),
    "sign": View("Blocks whose sign is foreseen", "edit", "share"),
    "weighed": View("The same, blocks weighed by the nats that they are worth", "edit", "share"),
    "calibration": View(
        "Predicted and realised worth of blocks", "bin", NATS, "of",
        ("calibration",), better="",
    ),
}  # fmt: skip
SUITE = Suite(
    ("base", "gistnet", "lensnet"),
    STANDARD.fits,
    measure,
    (
        "Every third block of 1,536 tokens, edited alone, and read again with the 384 tokens "
        "behind them; nats of the last 128. *Shown*: as tokens, all others silent. *Expanded*: "
        "from its gist, all others gists. *Hidden*, *collapsed*: silenced, or shown as its gist, "
        "all others tokens; above 0 where the block is worth something.",
        "*Gradient*: labels by gated gradients of the same 128 tokens, at gate 0.1 as the lens is "
        "trained, and at 1. *Exchange*: a block's gist gated by 1 − g and its tokens by g. The "
        "lens and the query gradient see the 256 tokens before.",
        "Bins hold as many blocks of all texts each.",
    ),
    segments=12,
    views=VIEWS,
)
