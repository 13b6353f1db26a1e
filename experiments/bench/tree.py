"""The rows of `bench tree`: ratios to something plain in the same run, and counts of faults."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments.bench import tree_faults, tree_large, tree_speed
from experiments.bench.measure import Sizes
from mctx.errors import UserError

INTERVAL = "quartiles of the repetitions"
NOTES = [
    "Ratios pair two things measured one after the other, in turn: their medians move together "
    "when the machine is shared.",
    "Before each bulk append and the raw file beside it, as much memory as they need is touched "
    "and freed: both find it at the same price. A load and the raw file beside it, as large as "
    "what is loaded, read into memory that the process has already, and take turns in who goes "
    "first; the disk alone reads the same file into one small buffer again and again.",
    "Times of commits include the sync of data and of HEAD.",
]

FULL = Sizes(
    commit_tokens=2**23,
    bulk_commits=6,
    repetitions=15,
    live_commits=200,
    gists=2**20,
    gathers=200,
    large_tokens=10**9,
    small_tokens=10**6,
    kills=200,
    polls=10_000,
    files=2000,
)
SMOKE = Sizes(
    commit_tokens=2**15,
    bulk_commits=2,
    repetitions=2,
    live_commits=6,
    gists=2**12,
    gathers=4,
    large_tokens=2**18,
    small_tokens=2**14,
    kills=3,
    polls=60,
    files=6,
)
PARTS: dict[str, Callable[[Path, Sizes, int], list[dict]]] = {
    "bulk": tree_speed.bulk,
    "live": tree_speed.live,
    "gather": tree_speed.gather,
    "large": tree_large.large,
    "kill": tree_faults.kill,
    "follow": tree_faults.follow,
    "replace": tree_faults.replace,
}


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all parts, or of those in --only; what is written is removed again."""
    wanted = [name for name in args.only.split(",") if name] or list(PARTS)
    unknown = set(wanted) - set(PARTS)
    if unknown:
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    sizes = SMOKE if args.smoke else FULL
    if args.workdir:
        args.workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in wanted:
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=args.workdir))
        try:
            rows += PARTS[name](folder, sizes, args.seed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return rows
