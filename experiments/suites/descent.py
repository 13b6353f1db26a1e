"""What a descent misses: blocks that the lens would choose, were it shown the gists of all.

A session looks at the coarsest cover of a history and opens it level by level, so that what a
coarse gist does not show is never looked at. Beside it the same lens scores the gists of all blocks
at once. A needle whose place is known is among them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from experiments.methods import Scorer
from experiments.methods.focused import roomy, tokens_config
from experiments.sessions import far_detail
from experiments.statistics import proportion, ratio
from experiments.suites import Asking
from experiments.suites.asking import covered, sample_facts, sample_of
from experiments.suites.trials import Plan, Trial
from experiments.suites.views import View, row
from mctx.focus.layout import FocusConfig, Layout, coarsest
from mctx.runtime import Session

FAMILY, LENS = "niah_single_2", "lens"
DESCENT, FULL = "descent", "all gists at once"
SHARE = "share"


def trials(plan: Plan) -> list[dict]:
    return [
        sample_facts(plan, FAMILY, length, repeat * len(plan.depths) + at, depth=depth)
        for length in plan.lengths
        for repeat in range(plan.samples)
        for at, depth in enumerate(plan.depths)
    ]


def make(plan: Plan, facts: dict) -> Trial:
    trial = sample_of(plan, facts, facts["depth"])
    return trial._replace(ask=functools.partial(_ask, trial.support))


def _ask(support: Sequence[tuple[int, int]], scorer: Scorer, method: str) -> dict | None:
    """What the session's own focus and full scoring make of one history.

    levels: of every block that full scoring chooses, as many as the session shows, the level of
    the session's node that holds it: 0 where it was opened. cover: the level of the node that held
    it at first. opened, seen: share of the needle's blocks that the session shows, and that full
    scoring chooses.
    """
    if method != LENS:
        return None
    config = roomy(scorer, tokens_config(scorer.model, scorer.protocol))
    if config is None:
        return None
    history = scorer.history
    session = Session(scorer.opened, history.tree, config, scorer.reader, history.cache)
    detail, block = far_detail(session), scorer.model.gist.block
    worth = of_all(session)
    wanted = np.argsort(-worth, kind="stable")[: len(detail)]
    return {
        "levels": levels_of(session, wanted),
        "cover": cover_of(session.focus, session.blocks)[wanted].tolist(),
        "opened": covered(support, detail, block),
        "seen": covered(support, wanted, block),
    }


def of_all(session: Session) -> np.ndarray:
    """The lens's utility of every block by its own gist, all side by side: [blocks]; what is
    always shown, or none of a choice, is worth nothing at all."""
    blocks, focus = session.blocks, session.focus
    room = 1 << (blocks - 1).bit_length()  # few shapes for many lengths
    there = np.arange(room) < blocks
    one = np.ones((1, room), np.int32)
    nodes = Layout(
        level=one * there,
        index=np.where(there, np.arange(room), -1).astype(np.int32)[None],
        shown=one > 0,
        born=0 * one,
        change=0 * one,
        count=np.array([blocks], np.int32),
    )
    wide = dataclasses.replace(focus, capacity=room)
    worth = session.lens(wide, nodes, np.zeros(1, np.int64)).own[0, :blocks].astype(np.float64)
    fixed = (np.arange(blocks) < focus.sink) | (np.arange(blocks) >= blocks - focus.recent)
    return np.where(fixed, -np.inf, worth)


def levels_of(session: Session, blocks: np.ndarray) -> list[int]:
    """The level of the node of the first head's layout that holds each block."""
    live = slice(0, int(session.shown.count[0]))
    level, index = (np.asarray(x[0][live]) for x in (session.shown.level, session.shown.index))
    start = index * np.asarray(session.focus.spans)[level]  # rising: nodes tile in time order
    return level[np.searchsorted(start, blocks, "right") - 1].tolist()


def cover_of(focus: FocusConfig, blocks: int) -> np.ndarray:
    """The level of the node of the coarsest layout that holds each block: [blocks]. Levels rise
    behind the sinks and fall before the recent blocks, so that not all begin at the highest."""
    level, _, count = coarsest(focus, blocks)
    return np.repeat(level, np.asarray(count) * focus.spans[level])


def rows(records: Sequence[dict], plan: Plan) -> list[dict]:
    """Misses by level, and how often the needle is chosen, by length."""
    found = []
    defined = [record for record in records if record["defined"]]
    for length in sorted({record["length"] for record in defined}):
        here = [record for record in defined if record["length"] == length]
        levels, covers = (
            [np.array(record[key], int) for record in here] for key in ("levels", "cover")
        )
        for level in range(1, plan.opened.model.gist.levels + 1):
            stopped = np.array([np.sum(one == level) for one in levels], float)
            came = np.array([
                np.sum((one <= level) & (first >= level))
                for one, first in zip(levels, covers, strict=True)
            ], float)  # fmt: skip
            found += _share("missed", stopped, came, plan.seed, level=level, length=length)
        opened = np.array([np.sum(one == 0) for one in levels], float)
        every = np.array([len(one) for one in levels], float)
        found += _share("opened", opened, every, plan.seed, length=length)
        for what, key in ((DESCENT, "opened"), (FULL, "seen")):
            hits = np.array([record[key] for record in here if record[key] is not None])
            if len(hits):
                told = proportion((hits == 1).astype(float))
                found.append(row("needle", what, SHARE, told, len(hits), length=length))
    return found


def _share(view: str, part: np.ndarray, whole: np.ndarray, seed: int, **where) -> list[dict]:
    """One row of the descent, of the samples that have any: none where none has."""
    some = whole > 0
    if not some.any():
        return []
    told = ratio(part[some], whole[some], seed=seed)
    return [row(view, DESCENT, SHARE, told, int(some.sum()), **where)]


def notes(records: Sequence[dict]) -> list[str]:
    return [
        "The session stands at the end of the history and descends from the coarsest cover in one "
        "refocus, silent where it does not look. *Wanted*: of all blocks scored by their own gists "
        "at once, the best, as many as the session shows besides sinks and recent ones.",
        "*Missed at level*: of the wanted blocks in nodes of this level that the descent had "
        "before it, those that it did not open.",
        f"A needle ({FAMILY}) is in text of no meaning, its question at the end.",
    ]


VIEWS = {
    "missed": View("Wanted blocks missed at a level", "level", SHARE, "length", better="lower"),
    "opened": View("Wanted blocks that the descent opens", "length", SHARE),
    "needle": View("The needle is chosen", "length", SHARE),
}
SUITE = Asking(
    trials,
    make,
    VIEWS,
    rows,
    notes,
    needs=(LENS,),
    measure=("opened", "higher"),
    interval="95 % over samples: Wilson's for needles, bootstrap for blocks",
)
