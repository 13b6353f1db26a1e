"""What an asynchronous checkpoint takes of the time of the steps beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.bench import job
from experiments.bench.measure import row
from experiments.configs import pico_base
from mctx.telemetry import read_scalars
from mctx.training import base
from mctx.training.loop import TrainSettings, train
from mctx.training.sources import Sources

SPACING = 16  # steps between two saves that are measured
DISTURBED = 8  # steps after one in which it may still be writing
EVERY = 200  # steps between two saves of a real run, over which the cost is spread


def share(folder: Path, saves: int) -> list[dict]:
    """The pico base, alone in this process: what a save adds to the steps after it.

    The time that the steps after a save take longer than the median of those farther from one,
    over that of EVERY steps.
    """
    config = ConfigDict(pico_base.get_config())
    config.update(batch_size=1, eval_segments=1, eval_batch=1, dtype="float32")
    config.base.window = 512
    sources = Sources(lambda items: ({}, {}), *[job.windows] * 5)
    phase = replace(base.phase(config, sources), evaluate=None)
    settings = TrainSettings(
        steps=SPACING * (saves + 1),
        learning_rate=1e-3,
        save_every=SPACING,
        log_every=1,
        data=1,
    )
    train(phase, settings, folder)
    times = np.array([line["time"] for line in read_scalars(folder / "base")])
    took = np.diff(times)  # took[i]: step i + 2
    step = np.arange(2, len(times) + 1)
    since = step - step // SPACING * SPACING
    calm = np.median(took[(since > DISTURBED) & (step > DISTURBED)])
    extra = [
        took[(step > s) & (step <= s + DISTURBED)].sum() - DISTURBED * calm
        for s in range(SPACING, SPACING * (saves + 1), SPACING)
    ]
    percent = [100 * float(e) / (EVERY * calm) for e in extra]
    what = f"a save every {EVERY} steps takes of their time (pico)"
    return [row(what, percent, "%", "≤ 2", np.median(percent) <= 2, step_ms=1e3 * float(calm))]
