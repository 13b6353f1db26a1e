"""How much a lens bears: noise on its scores, gists that are not their nodes', look-alikes.

What 8 blocks recover, chosen by a lens that is disturbed in one way at a time, beside the most
recent 8 of the same history (protocol: `experiments.suites.blocks`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np

from experiments.statistics import interval, ratio
from experiments.suites import Suite
from experiments.suites.blocks import (
    Protocol,
    best,
    lens_sees,
    lens_worth,
    nll_behind,
    nll_of_all,
    nodes_shown,
)
from experiments.suites.rows import in_batches
from experiments.suites.segments import Segments
from experiments.suites.views import View, row
from mctx.focus.bank import BankShape, make_bank
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened

LENS, RECENCY, RANDOM, NOTHING = "lens", "recency", "random", "recent"
PLAIN, SHUFFLED = "as it is", "gists shuffled"


@dataclasses.dataclass(frozen=True)
class Harm(Protocol):
    """Attributes:
    chosen: how many blocks. noise: standard deviations of what is added to the lens's scores, of
      the scores of a text. planted: blocks of a history that become copies of what is read now.
    """

    chosen: int = 8
    noise: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    planted: tuple[int, ...] = (1, 8)


STANDARD = Harm()


def measure(
    opened: Opened, segments: Segments, seed: int, protocol: Harm = STANDARD
) -> dict[str, list[dict]]:
    """Rows of the views noise, noise_delta, harm, harm_delta and taken, in one result."""
    rng, groups = np.random.default_rng(seed), segments.units
    shape, tokens = protocol.shape(opened.model), segments.tokens
    told = functools.partial(_told, opened, protocol, groups, seed)
    plain = scores(opened, protocol, tokens, unmoved(shape, len(tokens)))
    drawn = rng.normal(size=plain.shape) * plain.std(axis=1, keepdims=True)
    moved = scores(opened, protocol, tokens, shuffled(shape, len(tokens), rng))
    others = {
        RECENCY: np.broadcast_to(np.arange(shape.blocks), plain.shape),
        RANDOM: rng.uniform(size=plain.shape),
    }
    cases = {("noise", size): plain + size * drawn for size in protocol.noise}
    cases |= {("harm", PLAIN): plain, ("harm", SHUFFLED): moved}
    rows = told(tokens, others, cases)
    for count in protocol.planted:
        name = f"{count} look-alike{'s' * (count > 1)} planted"
        where = rng.uniform(size=plain.shape)
        changed = planted(protocol, shape, tokens, best(where, count))
        found = scores(opened, protocol, changed, unmoved(shape, len(tokens)))
        rows += told(changed, others, {("harm", name): found})
        rows += _taken(name, best(where, count), found, others, protocol, groups, seed)
    return {"robustness": rows}


# -- what is done to it ----------------------------------------------------------------------


def unmoved(shape: BankShape, count: int) -> np.ndarray:
    """Every node of a bank with its own gist: [count, N]."""
    return np.broadcast_to(np.arange(len(shape.node_level)), (count, len(shape.node_level)))


def shuffled(shape: BankShape, count: int, rng: np.random.Generator) -> np.ndarray:
    """Every node with the gist of another of its level, by chance: [count, N]."""
    level = np.broadcast_to(shape.node_level, (count, len(shape.node_level)))
    order = np.argsort(level + rng.uniform(size=level.shape), axis=1)
    return order  # nodes stand level by level, so each level is shuffled in itself


def planted(
    protocol: Harm, shape: BankShape, tokens: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """Segments whose blocks `where` [n, blocks] are copies of the last block that is seen."""
    end, block = protocol.history + protocol.seen, shape.gist.block
    changed = tokens.copy()
    history = changed[:, : protocol.history].reshape(len(tokens), shape.blocks, block)
    changed[:, : protocol.history] = np.where(
        where[..., None], tokens[:, None, end - block : end], history
    ).reshape(len(tokens), -1)
    return changed


def scores(
    opened: Opened, protocol: Harm, tokens: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """The lens's utilities [n, blocks], where node i has the gist of node order[:, i]."""
    of = functools.partial(_scores, opened.model, protocol, opened.params)
    return in_batches(of, tokens, order)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(model: Wrapped, protocol: Harm, params: dict, tokens, order):
    bank = make_bank(model, params, tokens[:, : protocol.history])
    query, nodes = lens_sees(model, params, protocol, bank, tokens)
    gists = jax.vmap(lambda one, where: one[where])(nodes.gists, order)
    shape = protocol.shape(model)
    return lens_worth(model, params, shape, query, nodes._replace(gists=gists))


# -- what comes of it ------------------------------------------------------------------------


def _told(
    opened: Opened,
    protocol: Harm,
    groups: np.ndarray,
    seed: int,
    tokens: np.ndarray,
    others: Mapping[str, np.ndarray],
    cases: Mapping[tuple, np.ndarray],
) -> list[dict]:
    """Rows of the cases of one text: what each way recovers, and NLL less that of the most recent
    blocks. `cases`: the lens's scores by view and case; `others`: those of who does not change."""
    worth = [*others.values(), *cases.values()]
    chosen = [best(some, protocol.chosen) for some in worth]
    masks = np.stack([np.zeros_like(chosen[0]), *chosen], axis=1)
    shown = nodes_shown(protocol.shape(opened.model), masks, gists=False)
    nll = nll_behind(opened, protocol, tokens, shown, protocol.chosen).mean(axis=-1)
    by = dict(zip((NOTHING, *others, *cases), nll.astype(np.float64).T, strict=True))
    room = by[NOTHING] - nll_of_all(opened, protocol, tokens)
    rows = []

    def tell(view, what, told, case):
        where = {VIEWS[view].across: case}
        rows.append(row(view, what, VIEWS[view].unit, told, len(room), **where))

    for view, case in cases:
        for name in (LENS, *others):
            own = by[(view, case) if name == LENS else name]
            if interval(room, groups, seed).low > 0:
                tell(view, name, ratio(by[NOTHING] - own, room, groups, seed), case)
            if name != RECENCY:
                tell(f"{view}_delta", name, interval(own - by[RECENCY], groups, seed), case)
    return rows


def _taken(case, where, lens, others, protocol, groups, seed) -> list[dict]:
    """Of the planted blocks, the share that is chosen."""
    rows = []
    for name, worth in {LENS: lens, **others}.items():
        hit = (best(worth, protocol.chosen) & where).sum(axis=1)
        told = ratio(hit, where.sum(axis=1), groups, seed)
        rows.append(row("taken", name, SHARE, told, len(lens), case=case))
    return rows


GAIN, NATS, SHARE = "of full attention's gain", "nats/token", "share"
VIEWS = {
    "noise": View("Recovered under noise on the lens's scores", "noise", GAIN, None, ("lines",)),
    "noise_delta": View(
        "ΔNLL against the most recent blocks, under noise", "noise", NATS, None, ("lines",),
        better="lower",
    ),
    "harm": View("Recovered by a lens that is misled", "case", GAIN),
    "harm_delta": View("ΔNLL against the most recent blocks", "case", NATS, better="lower"),
    "taken": View("Look-alikes that are chosen", "case", SHARE, better=""),
}  # fmt: skip
SUITE = Suite(
    ("base", "gistnet", "lensnet"),
    STANDARD.fits,
    measure,
    (
        "8 of 48 blocks shown as tokens, the others silent, before the recent 512 tokens; NLL of "
        "the last 256. Noise is normal, its size in standard deviations of a text's scores.",
        "*Gists shuffled*: every node has the gist of another of its level; what the finders found "
        "stays. *Planted*: blocks of the history, by chance, become copies of the last block that "
        "is seen; recency and full attention read that history too.",
    ),
    segments=12,
    views=VIEWS,
)
