"""What a run tells while it trains: metrics one step late, speed, utilisation, a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mctx.telemetry import ProgressBar, Telemetry, read_scalars
from mctx.training.step import Metrics, TrainSettings

UNPROFILED = 2  # steps of a run before its profile: the first compiles, the second fills queues


class NotFinite(Exception):
    """The step that was not made, and why."""

    def __init__(self, step: int, metrics: dict[str, float]):
        super().__init__(f"loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}")
        self.step = step


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Report:
    """Reads each step's metrics while the next one runs; the lead process shows and writes them.

    Args:
      at_peak: → seconds that a step would take at the peak speed of its devices, None where that
        is not known; asked once, in the lead process only.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        settings: TrainSettings,
        directory: Path,
        at_peak: Callable[[], float | None],
    ):
        self._lead, self._directory = jax.process_index() == 0, directory
        self._telemetry = Telemetry(directory, settings.wandb) if self._lead else None
        self._bar = ProgressBar(name, settings.steps, visible=self._lead)
        self._batch_size, self._settings, self._at_peak = batch_size, settings, at_peak
        self._ideal: float | None = None
        self._pending: tuple[int, Metrics] | None = None
        self._since: tuple[int, float] | None = None  # step and time from which speed is measured

    def begin(self, step: int, summary: str) -> None:
        self._bar.begin(step)
        self.note(summary)

    def note(self, text: str) -> None:
        self._bar.note(text)

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes over the metrics of a step that was just started."""
        jax.tree.map(lambda scalar: scalar.copy_to_host_async(), metrics)
        self.catch_up()
        self._pending = (step, metrics)

    def catch_up(self) -> None:
        """Waits for the step taken over last. Raises NotFinite if it was not made."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in metrics.items()}
        done = step + 1
        if metrics.pop("updates") != done:
            raise NotFinite(step, metrics)
        self._bar.advance(done)
        if done == self._settings.steps or due(done, self._settings.log_every):
            self._log(done, metrics)
        elif self._since is None:
            self._start_clock(done)  # the first step compiled: not counted

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        values = {f"eval/{name}": float(value) for name, value in values.items()}
        self._bar.note(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
        self._write(step, values)
        self._since = (step, time.perf_counter())

    def has_evaluation(self, step: int) -> bool:
        """Whether one was written at this step, by an earlier run too: all processes ask together
        and get the same answer."""
        found = self._lead and any(
            row["step"] == step and any(name.startswith("eval/") for name in row)
            for row in read_scalars(self._directory)
        )
        return bool(multihost_utils.broadcast_one_to_all(np.array(found)))

    def close(self) -> None:
        self._bar.close()
        if self._telemetry:
            self._telemetry.close()

    def _start_clock(self, step: int) -> None:
        if self._since is None and self._lead:
            self._ideal = self._at_peak()
        self._since = (step, time.perf_counter())

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        text, now = f"loss {metrics['loss']:.4f}", time.perf_counter()
        if self._since and step > self._since[0]:
            speed = (step - self._since[0]) / (now - self._since[1])
            metrics |= {"steps_per_s": speed, "items_per_s": speed * self._batch_size}
            text += f"  {speed:.2f} steps/s  {speed * self._batch_size:.0f} items/s"
            if self._ideal is not None:
                metrics["mfu"] = speed * self._ideal
                text += f"  {metrics['mfu']:.1%} MFU"
        self._start_clock(step)
        self._bar.report(step, text)
        self._write(step, metrics)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._telemetry:
            self._telemetry.scalars(step, values)


@contextmanager
def profiler(directory: Path, start: int, count: int) -> Iterator[Callable[[int, Callable], None]]:
    """Records `count` early steps of a run that begins at `start` in DIR/profile.

    Gives (step, settle) → None, to be called before every step; `settle` waits for the device.
    Each process records its own devices. Look at it with `xprof` or Perfetto.
    """
    first = start + UNPROFILED
    running = False

    def before(step: int, settle: Callable[[], None]) -> None:
        nonlocal running
        if count and step in (first, first + count):
            settle()
            if step == first:
                jax.profiler.start_trace(str(directory / "profile"))
            else:
                jax.profiler.stop_trace()
            running = step == first

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
