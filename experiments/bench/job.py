"""One process of a small training job: something to kill, and to start again.

    experiments/launch/local.sh N python -m experiments.bench.job WORKDIR STEPS DATA FSDP

A tiny decoder learns drawn tokens, by the phase and the loop that train every other. A batch is a
function of the seed, the step and the row, and nothing else.
"""

import sys
from dataclasses import replace

import numpy as np
from ml_collections import ConfigDict

from experiments import processes
from mctx.models.base import BaseConfig
from mctx.training import base
from mctx.training.loop import Phase, TrainSettings, train
from mctx.training.sources import Sources

SIZE = BaseConfig(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, window=32
)
BATCH, SAVE_EVERY = 16, 7


def windows(length: int, batch: int, seed: int, step: int, rows: slice) -> np.ndarray:
    """int32 [rows, length]: walks that a model can learn something of."""
    made = []
    for row in range(batch)[rows]:
        rng = np.random.default_rng([seed, step, row])
        made.append(np.cumsum(rng.integers(0, 3, length)) % SIZE.vocab_size)
    return np.array(made, np.int32)


def phase() -> Phase:
    sources = Sources(lambda items: ({}, {}), *[windows] * 5)
    config = ConfigDict(
        dict(base=SIZE.to_dict(), window=32, dtype="float32", batch_size=BATCH, eval_segments=1)
        | dict(eval_batch=1, train=dict(seed=0))
    )
    return replace(base.phase(config, sources), evaluate=None)


def settings(steps: int, data: int, fsdp: int) -> TrainSettings:
    return TrainSettings(
        steps=steps,
        learning_rate=3e-3,
        schedule="constant",
        save_every=SAVE_EVERY,
        log_every=1,
        data=data,
        fsdp=fsdp,
    )


def main() -> None:
    workdir, steps, data, fsdp = sys.argv[1], *map(int, sys.argv[2:])
    processes.join()
    train(phase(), settings(steps, data, fsdp), workdir)


if __name__ == "__main__":
    main()
