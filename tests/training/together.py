"""A job that trains every phase and writes one tree: something to start in one process and in two.

    DEVICES=4 experiments/launch/local.sh 2 python -m tests.training.together runs/two [PHASE …]
    JAX_PLATFORMS=cpu python -m tests.training.together runs/one [PHASE …] --compare=runs/two

The second is one process of one device, and then says how far apart the losses are; it ends with 1
where that is more than rounding. PHASEs: all, unless some are named.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import processes
from mctx import sharding
from mctx.telemetry import read_scalars
from mctx.training.loop import TrainSettings, train
from mctx.tree.hosts import append_together
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.store import Tree
from tests import tiny
from tests.training import test_phases

ROWS = 8
SETTINGS = TrainSettings(steps=3, learning_rate=1e-2, seed=7, save_every=0, log_every=1)
TOLERANCE = 1e-4  # of losses and gradient norms, relative
LENGTH = 9 * tiny.MODEL.window + 7  # of the history


def train_all(names: list[str], folder: Path, settings: TrainSettings, **mesh: int) -> None:
    for name in names:
        phase = test_phases.phase_of(name, batch_size=ROWS)
        if name != "base":  # one evaluation tells that its results can be read
            phase = replace(phase, evaluate=None)
        train(phase, replace(settings, **mesh), folder)


def write_tree(uri: Path) -> None:
    """A history of LENGTH tokens, by however many processes there are."""
    spec = tree_spec(tiny.MODEL, "models")
    if jax.process_index() == 0:
        Tree.create(uri, spec).close()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tree")
    reader = Reader(tiny.MODEL, tiny.params())
    tokens = np.asarray(tiny.tokens(1, LENGTH)[0])
    append_together(str(uri), reader, tokens, "models", windows=2)


def apart(one: Path, two: Path) -> float:
    """The greatest relative difference of two runs of a phase, over all steps."""
    runs = [read_scalars(folder) for folder in (one, two)]
    assert [len(rows) for rows in runs] == [SETTINGS.steps] * 2
    a, b = (
        np.array([[row[key] for key in ("loss", "grad_norm")] for row in rows]) for rows in runs
    )
    return float(np.max(np.abs(a - b) / np.abs(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("phases", nargs="*")
    parser.add_argument("--compare", type=Path)
    args = parser.parse_args()
    processes.join()
    jax.config.update("jax_disable_most_optimizations", True)
    sharding.LARGE = 64  # so that even these parameters are split
    together = jax.process_count() > 1
    processes.check_devices(8 if together else None)
    mesh = dict(data=4, fsdp=2) if together else dict(data=1)
    names = args.phases or list(test_phases.SMALL)
    train_all(names, args.folder, SETTINGS, **mesh)
    write_tree(args.folder / "tree")
    if args.compare:
        found = {name: apart(args.compare / name, args.folder / name) for name in names}
        print("\n".join(f"{name}: losses differ by {x:.2g} at most" for name, x in found.items()))
        raise SystemExit(max(found.values()) > TOLERANCE)


if __name__ == "__main__":
    main()
