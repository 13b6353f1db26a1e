"""What a few blocks, shown as tokens besides the recent ones, recover; by who chooses them.

The blocks that are not chosen are silent, or shown as gists. And what the lens closes of the gap
between the best method that learns nothing and cross-fitted hindsight.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.statistics import interval, ratio
from experiments.suites import Suite
from experiments.suites.blocks import (
    FOLDS,
    STANDARD,
    UNLEARNED,
    Protocol,
    best,
    nll_behind,
    nll_of_all,
    nodes_shown,
    scored_places,
    unlearned,
    worths,
)
from experiments.suites.rows import nll_row, spread
from experiments.suites.segments import Segments
from experiments.suites.views import View, row
from mctx.opened import Opened

MIX, CROSSED, BOUND = "best mix", "hindsight crossfit", "hindsight"
NOTHING = "recent"
STEPS = 4  # a weight of a mix is a multiple of one in so many
GUESSES = ("random", *UNLEARNED, MIX, "lens", BOUND, CROSSED)
RESTS = ("silent", "as gists")  # of blocks that are not chosen


def measure(
    opened: Opened, segments: Segments, seed: int, protocol: Protocol = STANDARD
) -> dict[str, list[dict]]:
    """Rows `lens`, by view and number of blocks, and `lens-gap`.

    The first are of recent (no block), of those who choose (`GUESSES`), and of full (all blocks).
    """
    model, tokens, groups = opened.model, segments.tokens, segments.units
    found = worths(opened, protocol, tokens)
    ranks = unlearned(model, protocol, tokens, found)
    noise = np.random.default_rng(seed).uniform(size=found["lens"].shape)
    mixed = {m: mix(ranks, found[BOUND], m, groups) for m in protocol.blocks}
    known = {name: found[name] for name in ("lens", BOUND, *FOLDS)} | ranks | {"random": noise}
    chosen = {(0, NOTHING): np.zeros(noise.shape, bool)}
    for m in protocol.blocks:
        by = known | {MIX: mixed[m].worth}
        chosen |= {(m, name): best(worth, m) for name, worth in by.items()}
    nll = _scored(opened, protocol, tokens, chosen)
    full = nll_of_all(opened, protocol, tokens)
    rows = []
    for m in protocol.blocks:
        ways = {name: nll[m, name] for name in GUESSES}
        every = {NOTHING: nll[0, NOTHING], **ways, "full": (full, full)}
        rows += _rows(every, groups, seed, m)
    gaps = [
        gap(m, rest, {g: nll[m, g][column] for g in GUESSES}, groups, seed, mixed[m].weights)
        for column, rest in enumerate(RESTS)
        for m in protocol.blocks
    ]
    return {"lens": rows, "lens-gap": gaps}


def _scored(opened, protocol, tokens, chosen) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """Mean NLL [n] with the rest silent and with the rest as gists, by (blocks, who chose)."""
    shape, most = protocol.shape(opened.model), max(protocol.blocks)
    blocks = np.stack(list(chosen.values()), axis=1)  # [n, C, blocks]
    shown = np.concatenate([nodes_shown(shape, blocks, gists) for gists in (False, True)], axis=1)
    each = nll_behind(opened, protocol, tokens, shown, most)
    each = each.reshape(len(tokens), 2, len(chosen), -1)  # [n, 2, C, scored]
    by = {key: each[:, :, at] for at, key in enumerate(chosen)}  # [n, 2, scored]
    odd = np.flatnonzero(scored_places(protocol)) % 2 == 1
    for m in protocol.blocks:
        by_odd, by_even = (by.pop((m, fold)) for fold in FOLDS)
        by[m, CROSSED] = np.where(odd, by_even, by_odd)  # none scores what it chose by
    return {key: tuple(nll.mean(axis=-1).T) for key, nll in by.items()}


class Mix(NamedTuple):
    """Attributes:
    worth: [n, blocks], of every segment by weights chosen on other groups.
    weights: of all groups together, in words.
    """

    worth: np.ndarray
    weights: str


def mix(
    ranks: Mapping[str, np.ndarray], labels: np.ndarray, count: int, groups: np.ndarray
) -> Mix:
    """The best weighted sum of ranks: of weights on a grid, those whose `count` best blocks have
    most of the hindsight labels [n, blocks]; for each group chosen on all other groups."""
    weights = np.array(list(_grid(len(ranks)))) / STEPS  # [W, F]
    stacked = np.stack(list(ranks.values()))  # [F, n, blocks]
    got = np.stack([
        np.sum(labels * best(np.tensordot(w, stacked, 1), count), axis=1) for w in weights
    ])  # fmt: skip
    worth = np.zeros(labels.shape)
    for group in np.unique(groups):
        here = groups == group
        own = weights[np.argmax(got[:, ~here].mean(axis=1))]
        worth[here] = np.tensordot(own, stacked[:, here], 1)
    overall = weights[np.argmax(got.mean(axis=1))]
    named = [f"{name} {w:g}" for name, w in zip(ranks, overall, strict=True) if w]
    return Mix(worth, ", ".join(named))


def _grid(kinds: int):
    """Whole numbers that add up to `STEPS`, for each of some kinds."""
    every = itertools.product(range(STEPS + 1), repeat=kinds)
    return (some for some in every if sum(some) == STEPS)


def _rows(nll: Mapping, groups: np.ndarray, seed: int, chosen: int) -> list[dict]:
    """Rows of pairs (rest silent, rest as gists); recovered is on the scale of the silent ones."""
    nothing, full = (nll[name][0].astype(np.float64) for name in (NOTHING, "full"))
    clear = interval(nothing - full, groups, seed).low > 0
    rows = []

    def tell(view, what, told):
        rows.append(row(view, what, VIEWS[view].unit, told, len(full), blocks=chosen))

    for what, pair in nll.items():
        for rest, each in zip(RESTS, pair, strict=True):
            if clear:
                tell(f"recovered {rest}", what, ratio(nothing - each, nothing - full, groups, seed))
            tell(f"nll {rest}", what, interval(each.astype(np.float64), groups, seed))
    return rows


def gap(
    blocks: int, rest: str, nll: Mapping[str, np.ndarray], groups: np.ndarray, seed: int, mixed: str
) -> dict:
    """The lens against the best that learns nothing, paired, and the share that it closes of the
    gap between that and cross-fitted hindsight, where there clearly is one.

    `nll`: [n] by who chose. The best is the one with the least mean NLL on these very segments:
    that is in its favour, and stays as it is while segments are drawn.
    """
    rivals = [name for name in (*UNLEARNED, MIX) if name in nll]
    rival = min(rivals, key=lambda name: nll[name].mean())
    gained, room = (nll[rival] - nll[name].astype(np.float64) for name in ("lens", CROSSED))
    found = nll_row(f"{blocks} blocks, the rest {rest}", -gained, groups, seed)
    found |= {"against": rival + (f" ({mixed})" if rival == MIX else "")}
    if interval(room, groups, seed).low > 0:
        found |= spread(ratio(gained, room, groups, seed), "gap_closed")
    return found


GAIN, NATS = "of full attention's gain", "nats/token"
VIEWS = {
    f"{what} {rest}": View(f"{title}, the rest {rest}", "blocks", unit, None, pictures, better=way)
    for what, title, unit, pictures, way in (
        ("recovered", "Recovered", GAIN, ("lines",), "higher"),
        ("nll", "NLL", NATS, (), "lower"),
    )
    for rest in RESTS
}
SUITE = Suite(
    ("base", "gistnet", "lensnet"),
    STANDARD.fits,
    measure,
    (
        "2 to 16 of the 48 blocks of 1,536 tokens, shown as tokens; the recent 512 tokens are read "
        "again behind them, and NLL is that of the last 256. Whoever chooses sees the first 256. "
        "Recovered counts from no block, no gist.",
        "Hindsight chooses by gated gradients of the very tokens that are scored: a bound. "
        "Crossfit: chosen by the odd ones and scored on the even ones, and the other way round.",
        "The best mix weighs the ranks of recency, BM25, cosine, attention and query gradient; "
        "for each package or author by weights that were chosen on the others' labels.",
        "`lens-gap`: NLL of the lens less that of the best of recency, BM25, cosine, attention, "
        "query gradient and their mix, and the share of the way to crossfit that it goes.",
    ),
    segments=12,
    views=VIEWS,
)
