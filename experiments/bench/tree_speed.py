"""How fast a tree of ordinary size is written and read, against a raw file and NumPy."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from experiments.bench.measure import SPEC, Sizes, Source, row, seconds, touch
from mctx.tree.mirror import MirrorConfig
from mctx.tree.store import Tree

GROUP = 16  # blocks to a commit of a session that commits in groups
AT_ONCE = 1000  # gists of one gather


def bulk(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """Tokens and gists appended in large commits, against one file written in the same sizes."""
    source = Source(seed, sizes.commit_tokens)
    tokens, gists = source.tokens.tobytes(), source.gists.tobytes()
    above = gists[: len(gists) // 31]

    def raw() -> None:
        with open(folder / "raw", "wb", buffering=0) as file:
            for _ in range(sizes.bulk_commits):
                for part in (tokens, gists, above):
                    file.write(part)
                os.fsync(file.fileno())

    def tree() -> None:
        with Tree.create(folder / "tree", SPEC, bulk=True) as made:
            for _ in range(sizes.bulk_commits):
                source.append(made, sizes.commit_tokens)
                made.commit(wait=False)

    ratios, rates = [], []
    size = sizes.bulk_commits * (len(tokens) + len(gists) + len(above))
    for number in range(-1, sizes.repetitions):  # the first is to warm up
        spent = {}
        for write in (raw, tree) if number % 2 else (tree, raw):
            touch(4 * size)  # both find memory for their pages and buffers
            spent[write] = seconds(write)
        (folder / "raw").unlink()
        shutil.rmtree(folder / "tree")
        if number >= 0:
            ratios.append(spent[raw] / spent[tree])
            rates.append(size / spent[tree] / 1e6)
    reached = np.median(ratios) >= 0.8
    what = "bulk append, synced"
    return [row(what, ratios, "× a raw file", "≥ 0.8", reached, MB_per_s=float(np.median(rates)))]


def live(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """A session's commits: a block and the gists it completes; alone, and in groups."""
    source = Source(seed, 2**16)
    each, grouped, calling = [], [], []
    with Tree.create(folder / "tree", SPEC) as tree:
        source.append(tree, 2**16)
        tree.commit()
        for _ in range(sizes.live_commits):
            each.append(1e3 * seconds(lambda: (source.append(tree, 32), tree.commit())))
        for _ in range(max(2, sizes.live_commits // GROUP)):
            began = time.perf_counter()
            for _ in range(GROUP):
                source.append(tree, 32)
            tree.commit(wait=False)
            calling.append(1e3 * (time.perf_counter() - began) / GROUP)
            tree.commit()  # waits
            grouped.append(1e3 * (time.perf_counter() - began) / GROUP)
    return [
        row("commit of 32 tokens and their gist", each, "ms", "≤ 15", np.median(each) <= 15),
        row(f"the same, {GROUP} blocks a commit", grouped, "ms", "≤ 2", np.median(grouped) <= 2),
        row("of it in the thread that decodes", calling, "ms", "", True),
    ]


def gather(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    """Random gists: from the mirror against NumPy, and unmirrored against reading row by row."""
    rng, source = np.random.default_rng(seed), Source(seed, 32 * sizes.gists)
    with Tree.create(folder / "tree", SPEC, bulk=True) as tree:
        source.append(tree, 32 * sizes.gists)
    rows = source.gists[: sizes.gists].astype(np.float32)
    ratios, eighths = [], []
    whole = [
        Tree.open(folder / "tree", mirror=MirrorConfig(int8=int8, load=False))
        for int8 in (False, True)
    ]
    for tree in whole:
        tree.gather(1, np.arange(sizes.gists))
    for _ in range(sizes.gathers):
        indices = rng.integers(0, sizes.gists, AT_ONCE)
        plain = seconds(lambda: rows[indices])  # noqa: B023
        for tree, found in zip(whole, (ratios, eighths), strict=True):
            found.append(seconds(lambda: tree.gather(1, indices)) / plain)  # noqa: B023
    cold = _unmirrored(folder / "tree", sizes, rng)
    goal = "≤ 2"
    return [
        row(f"{AT_ONCE} random gists, mirrored", ratios, "× NumPy", goal, np.median(ratios) <= 2),
        row("the same, mirrored in 8 bits", eighths, "× NumPy", goal, np.median(eighths) <= 2),
        row("the same, not mirrored", cold, "× row by row", "≥ 3", np.median(cold) >= 3),
    ]


def _unmirrored(uri: Path, sizes: Sizes, rng: np.random.Generator) -> list[float]:
    """Seconds of one TensorStore read per row / seconds of one gather, by a mirror of nothing."""
    ratios = []
    for _ in range(sizes.repetitions):
        tree = Tree.open(uri, mirror=MirrorConfig(limit=1, load=False))
        array = tree._arrays._array(1, tree.epoch)
        indices = rng.choice(sizes.gists, min(AT_ONCE, sizes.gists), replace=False)
        tree.gather(1, indices[:1])  # opens the array
        by_row = seconds(lambda: [array[int(i)].read().result() for i in indices])  # noqa: B023
        ratios.append(by_row / seconds(lambda: tree.gather(1, indices)))  # noqa: B023
    return ratios
