"""A tree of a billion tokens, really written: opening it, loading its mirror, adding to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from experiments.bench.measure import SPEC, Sizes, Source, forget, row, seconds, touch
from mctx.tree.mirror import MirrorConfig
from mctx.tree.store import Tree

READ_BYTES = 2**23
LOADED = MirrorConfig(limit=2**33)
LOADS = 15


def large(folder: Path, sizes: Sizes, seed: int) -> list[dict]:
    source = Source(seed, sizes.commit_tokens)
    small, big = folder / "small", folder / "large"
    for uri, length in ((small, sizes.small_tokens), (big, sizes.large_tokens)):
        with Tree.create(uri, SPEC, bulk=True, mirror=MirrorConfig(load=False)) as tree:
            while tree.length < length:
                source.append(tree, min(sizes.commit_tokens, length // 32 * 32 - tree.length) or 32)
                tree.commit(wait=False)
    return [*_opening(big, sizes, seed), *_appending(small, big, sizes, source)]


def _opening(uri: Path, sizes: Sizes, seed: int) -> list[dict]:
    """To the first gists, nothing of the tree in memory; then the mirror's rate of loading."""
    rng = np.random.default_rng(seed)
    opened, ratios, rates, disks = [], [], [], []
    raw = uri.parent / "raw"
    _write_raw(raw, 2**31 if sizes.large_tokens >= 10**9 else 2**22)
    for _ in range(LOADS):
        forget(uri)
        began = time.perf_counter()
        tree = Tree.open(uri, mirror=LOADED)
        tree.gather(1, rng.integers(0, tree.count(1), 32))
        opened.append(time.perf_counter() - began)
        whole = sum(tree.stats()["bytes"].values())  # the gists, in the mirror and on their way
        tree.close()
        del tree
        touch(whole)
        plain, disk = _rates_of(raw)
        touch(whole)
        forget(uri)
        tree = Tree.open(uri, mirror=MirrorConfig(LOADED.limit, load=False))
        began = time.perf_counter()
        tree._mirror.load(tree.head)
        if tree._mirror.loaded:
            size = tree._mirror.loaded.result()
            rates.append(size / (time.perf_counter() - began) / 1e6)
            ratios.append(rates[-1] / plain)
            disks.append(disk)
        tree.close()
    raw.unlink()
    rows = [row("opening to the first read", opened, "s", "≤ 1", np.median(opened) <= 1)]
    if ratios:
        speeds = {"MB_per_s": float(np.median(rates)), "disk_MB_per_s": float(np.median(disks))}
        reached = np.median(ratios) >= 0.7
        unit = "× a raw file into memory"
        rows.append(row("loading the mirror", ratios, unit, "≥ 0.7", reached, **speeds))
    return rows


def _write_raw(path: Path, size: int) -> None:
    piece = np.random.default_rng(0).bytes(READ_BYTES)
    with open(path, "wb", buffering=0) as file:
        for _ in range(0, size, READ_BYTES):
            file.write(piece)
        os.fsync(file.fileno())


def _rates_of(path: Path) -> tuple[float, float]:
    """MB/s of reading a file that the system does not hold: into memory as large as the file, which
    is what a mirror is, and into one small buffer again and again, which is the disk alone."""
    size, found = path.stat().st_size, []
    for room in (size, READ_BYTES):
        forget(path.parent)
        memory = memoryview(np.empty(room, np.uint8))
        with open(path, "rb", buffering=0) as file:
            began, at = time.perf_counter(), 0
            while read := file.readinto(memory[at : at + READ_BYTES]):
                at = (at + read) % room
        found.append(size / (time.perf_counter() - began) / 1e6)
    return found[0], found[1]


def _appending(small: Path, large: Path, sizes: Sizes, source: Source) -> list[dict]:
    """The cost of a commit in a small tree and in the large one, turn by turn."""
    trees = [Tree.open(uri, "w", mirror=MirrorConfig(load=False)) for uri in (small, large)]
    spent = [[], []]
    for number in range(sizes.live_commits):
        for which in (0, 1) if number % 2 else (1, 0):
            tree = trees[which]
            took = seconds(lambda: (source.append(tree, 32), tree.commit()))  # noqa: B023
            spent[which].append(took)
    for tree in trees:
        tree.close()
    halves = np.array_split(np.arange(sizes.live_commits), min(8, sizes.live_commits))
    ratios = [np.median(np.array(spent[1])[h]) / np.median(np.array(spent[0])[h]) for h in halves]
    ratio = float(np.median(spent[1]) / np.median(spent[0]))
    lengths = f"{sizes.large_tokens:,} tokens against {sizes.small_tokens:,}"
    made = row(f"an append: {lengths}", ratios, "×", "0.9 to 1.1", 0.9 <= ratio <= 1.1)
    return [made | {"value": ratio, "n": sizes.live_commits}]
