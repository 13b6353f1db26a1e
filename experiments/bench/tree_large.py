"""A tree of a billion tokens, really written: opening it, loading its mirror, adding to it."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from experiments.bench.measure import SPEC, Sizes, Source, forget, row, seconds
from mctx.tree.mirror import PAGE_BYTES, MirrorConfig
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
    opened, rates = [], []
    raw = uri.parent / "raw"
    for number in range(LOADS):
        forget(uri)
        began = time.perf_counter()
        tree = Tree.open(uri, mirror=LOADED)
        tree.gather(1, rng.integers(0, tree.count(1), 32))
        opened.append(time.perf_counter() - began)
        whole = _gist_bytes(tree)
        tree.close()
        del tree
        if not raw.exists():
            _write_raw(raw, whole)
        sides = [partial(_load_rate, uri), partial(_raw_rate, raw, whole)]
        turn = 1 if number % 2 else -1
        load, plain = [side() for side in sides[::turn]][::turn]
        if load:
            rates.append((load, plain, _raw_rate(raw, READ_BYTES), _load_rate(uri, fresh=True)))
    raw.unlink()
    rows = [row("opening to the first read", opened, "s", "≤ 1", np.median(opened) <= 1)]
    return rows + (_loading(np.array(rates)) if rates else [])


def _loading(rates: np.ndarray) -> list[dict]:
    """Rows of MB/s [n, 4]: of a load, of a raw file into memory, of the disk alone, and of a load
    into memory that is new to the process."""
    rows = []
    for load, beside, name, goal in (
        (0, 1, "a raw file into memory", "≥ 0.7"),
        (0, 2, "the disk alone", "≥ 0.7"),
        (3, 2, "the disk alone, into new memory", ""),
    ):
        ratios, speeds = rates[:, load] / rates[:, beside], np.median(rates, axis=0)
        reached = np.median(ratios) >= 0.7
        speed = {"MB_per_s": float(speeds[load]), "beside_MB_per_s": float(speeds[beside])}
        rows.append(row("loading the mirror", ratios, f"× {name}", goal, reached, **speed))
    return rows


def _gist_bytes(tree: Tree) -> int:
    return sum(size for level, size in tree.stats()["bytes"].items() if level)


def _load_rate(uri: Path, fresh: bool = False) -> float:
    """MB/s of a mirror that loads a tree of which the system holds nothing, into memory that the
    process has, or that is `fresh`; 0 where there is too little to load."""
    forget(uri)
    tree = Tree.open(uri, mirror=MirrorConfig(LOADED.limit, load=False))
    mirror = tree._mirror
    if not fresh:
        mirror._pages.reserve(_gist_bytes(tree) // PAGE_BYTES + SPEC.levels)
        for held in mirror._pages._held:
            held.fill(0)
    began = time.perf_counter()
    mirror.load(tree.head)
    size = mirror.loaded.result() if mirror.loaded else 0
    rate = size / (time.perf_counter() - began) / 1e6
    tree.close()
    return rate


def _write_raw(path: Path, size: int) -> None:
    piece = np.random.default_rng(0).bytes(READ_BYTES)
    with open(path, "wb", buffering=0) as file:
        while size:
            size -= file.write(piece[:size])
        os.fsync(file.fileno())


def _raw_rate(path: Path, room: int) -> float:
    """MB/s of reading a file of which the system holds nothing into `room` bytes that the process
    has: as many as the file, which is what a mirror is, or few again and again, the disk alone."""
    size = path.stat().st_size
    forget(path.parent)
    memory = np.empty(room, np.uint8)
    memory.fill(0)
    memory = memoryview(memory)
    with open(path, "rb", buffering=0) as file:
        began, at = time.perf_counter(), 0
        while read := file.readinto(memory[at : at + READ_BYTES]):
            at = (at + read) % room
    return size / (time.perf_counter() - began) / 1e6


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
