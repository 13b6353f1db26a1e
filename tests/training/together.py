"""One process of a job that trains every phase and writes one tree: something to start twice.

    DEVICES=4 experiments/launch/local.sh 2 python -m tests.training.together FOLDER [PHASE …]
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import processes
from mctx import sharding
from mctx.training.loop import TrainSettings, train
from mctx.tree.hosts import append_together
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.store import Tree
from tests import tiny
from tests.training import test_phases

ROWS = 8
SETTINGS = TrainSettings(steps=3, learning_rate=1e-2, seed=7, save_every=0, log_every=1)
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


def main() -> None:
    folder = Path(sys.argv[1])
    processes.join()
    processes.check_devices(8)
    jax.config.update("jax_disable_most_optimizations", True)
    sharding.LARGE = 64  # so that even these parameters are split
    train_all(sys.argv[2:] or list(test_phases.SMALL), folder, SETTINGS, data=4, fsdp=2)
    write_tree(folder / "tree")


if __name__ == "__main__":
    main()
