"""What the parts of `bench tree` share: sizes, synthetic histories, timing, rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mctx.tree.store import Tree, TreeSpec

SPEC = TreeSpec((32, 32, 32), slots=1, gist_width=64, fingerprint="bench", vocab_size=2**15)
WIDTH = SPEC.gist_width


class Sizes(NamedTuple):
    """How much is measured. Tokens of a bulk commit, numbers of commits, repetitions, and so on."""

    commit_tokens: int
    bulk_commits: int
    repetitions: int
    live_commits: int
    gists: int
    gathers: int
    large_tokens: int
    small_tokens: int
    kills: int
    polls: int
    files: int


def row(
    what: str, values: Sequence[float], unit: str, goal: str, reached: bool, **more
) -> dict:
    """A result row of repetitions: median and quartiles; `reached` where there is a goal."""
    low, value, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    spread = {"low": low, "high": high} if len(values) > 1 else {}
    judged = {"goal": goal, "reached": bool(reached) if goal else None}
    found = {"what": what, "value": value, "unit": unit, **spread, **judged}
    return {**found, "n": len(values), **more}


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Source:
    """Random tokens and gists, drawn once and used in turn: drawing is slower than writing."""

    def __init__(self, seed: int, tokens: int):
        rng = np.random.default_rng(seed)
        self.tokens = rng.integers(0, SPEC.vocab_size, tokens, np.int32)
        values = rng.normal(size=(tokens // SPEC.fanouts[0], 1, WIDTH)).astype(np.float32)
        self.gists = values.astype(ml_dtypes.bfloat16)
        self.tokens.flags.writeable = self.gists.flags.writeable = False  # need no copy

    def append(self, tree: Tree, count: int) -> None:
        """`count` tokens, no more than were drawn, and every gist that they complete."""
        length = tree.length + count
        gists = {
            level: self.gists[: length // SPEC.span(level) - tree.count(level)]
            for level in range(1, SPEC.levels + 1)
        }
        tree.append(self.tokens[:count], gists)


def touch(size: int) -> None:
    """Touches so many bytes of memory and frees them, so that who is measured next finds pages
    that the machine holds: a virtual machine gives free ones back to its host, and getting one
    again costs several times as much, which would be the price of coming second."""
    np.empty(size, np.uint8)[:: os.sysconf("SC_PAGESIZE")] = 1


def forget(folder: Path) -> None:
    """Asks the system to drop what it holds of the files; they must be synced."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
