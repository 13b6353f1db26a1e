"""The one train loop: every phase (base, gist, lens, mof) is a value that `train` runs.

One compiled step over the mesh ('data', 'fsdp') with donated state; batches are made ahead by a
thread and metrics are read one step late, so the device waits for neither. All that a step uses
is a function of (seed, step): a resumed run repeats what the killed one would have done.
"""

import json
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mctx import checkpoint, sharding
from mctx.errors import UserError
from mctx.telemetry import ProgressBar, Telemetry
from mctx.training.step import (
    Batch,
    Loss,
    Metrics,
    Params,
    State,
    TrainSettings,
    init_key,
    make_optimizer,
    make_step,
)

PREFETCH = 2  # batches made ahead of the step


@dataclass(frozen=True)
class Phase:
    """What is trained, on what, and how it is judged.

    Attributes:
      name: 'base', 'gist', 'lens' or 'mof'; also the folder of the workdir it writes.
      item: the checkpoint item it trains: 'base', 'gistnet', 'lensnet' or 'mof'.
      init: key → the parameters that are trained; traceable by `jit`.
      loss: (params, frozen, batch, key) → (loss, metrics), all scalars. The loss is a mean over
        the batch, sum / count over ALL its rows, so that it is right however rows are sharded.
        Where that count is ragged, metrics carry it as 'weight': micro-batches are averaged by it.
      batch: (step, rows) → those rows of the global batch of that step; a pure function.
      batch_size: rows of the global batch.
      config: JSON-able {item: model config}, saved with every checkpoint.
      frozen: other items by name. They are arguments of the step, never constants in it, and get
        neither gradient nor optimizer state (design: law 4).
      evaluate: (params, frozen) → numbers, logged as 'eval/<name>'.
    """

    name: str
    item: str
    init: Callable[[jax.Array], Params]
    loss: Loss
    batch: Callable[[int, slice], dict[str, np.ndarray]]
    batch_size: int
    config: dict
    frozen: dict[str, Params] = field(default_factory=dict)
    evaluate: Callable[[Params, dict[str, Params]], dict[str, float]] | None = None


class Preempted(SystemExit):
    """The run was told to stop and its state is saved; uncaught, the program exits with 0."""


def train(phase: Phase, settings: TrainSettings, workdir: str | Path) -> Params:
    """Trains `phase` in WORKDIR/<phase.name>, going on from its latest checkpoint if it has one.

    Returns the trained parameters, placed on the mesh. SIGTERM saves and raises Preempted.
    Raises UserError for sizes that do not fit, for a checkpoint of another configuration, and
    when a step is not finite (the state before that step is saved; its step is in the message).
    """
    directory = Path(workdir) / phase.name
    mesh = sharding.mesh(settings.data, settings.fsdp)
    _check_batch_size(phase, settings, mesh)
    with (
        jax.set_mesh(mesh),
        checkpoint.manager(directory, settings.keep) as manager,
        closing(_Report(phase, settings, directory)) as report,
        _stop_requests() as stop_requested,
    ):
        state = _initial_state(phase, settings, mesh, manager)
        frozen = sharding.place(phase.frozen, mesh)
        start = saved = int(state.step)
        report.begin(start, _summary(phase, state, frozen, mesh))

        def save(step: int) -> None:
            nonlocal saved
            if step != saved:
                train_state = {"opt_state": state.opt_state, "step": state.step}
                checkpoint.save(manager, step, phase.item, state.params, train_state, phase.config)
                saved = step

        placed = jax.tree.map(lambda leaf: leaf.sharding, state)
        everywhere = NamedSharding(mesh, PartitionSpec())
        step_fn = make_step(phase.loss, settings)
        step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=(placed, everywhere))
        try:
            with closing(_batches(phase, settings.steps, mesh, start)) as batches:
                for step, batch in batches:
                    state, metrics = step_fn(state, frozen, batch, step)
                    report.step(step, metrics)
                    done, last = step + 1, step + 1 == settings.steps
                    stop = stop_requested(done)
                    if last or stop or _due(done, settings.save_every):
                        report.catch_up()  # never save, nor judge, behind an unseen failure
                        save(done)
                    if phase.evaluate and (last or _due(done, settings.eval_every)):
                        report.catch_up()
                        report.evaluation(done, phase.evaluate(state.params, frozen))
                    if stop and not last:
                        report.note(f"told to stop: step {done} is saved")
                        raise Preempted(0)
        except _NotFinite as failure:
            save(failure.step)
            raise UserError(
                f"step {failure.step} of phase '{phase.name}' is not finite ({failure}): the state "
                f"before it is saved in {directory / str(failure.step)}; look at that batch or "
                "start again with a lower learning rate."
            ) from None
        return state.params  # leaving the manager waits until what was saved is durable


def _check_batch_size(phase: Phase, settings: TrainSettings, mesh: Mesh) -> None:
    parts = mesh.size * settings.grad_accum
    if phase.batch_size % parts:
        raise UserError(
            f"a batch of {phase.batch_size} cannot be split over {mesh.size} device(s) × "
            f"grad_accum={settings.grad_accum}: make it a multiple of {parts}."
        )


def _initial_state(phase: Phase, settings: TrainSettings, mesh: Mesh, manager) -> State:
    """The state of the latest checkpoint, or a fresh one; each leaf where it belongs."""
    optimizer = make_optimizer(settings)

    def fresh(key: jax.Array) -> State:
        params = phase.init(key)
        return State(params, optimizer.init(params), jnp.int32(0))

    key = init_key(settings.seed)
    shapes = jax.eval_shape(fresh, key)
    where = sharding.shardings(shapes, mesh)
    step = checkpoint.latest_step(manager.directory, phase.item)
    if step is None:
        return jax.jit(fresh, out_shardings=where)(key)

    if checkpoint.read_config(manager.directory, step) != json.loads(json.dumps(phase.config)):
        raise UserError(
            f"{manager.directory} was trained with another model config: go on with that one, or "
            "choose another workdir."
        )
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        where,
    )
    params, train_state = checkpoint.restore_train_state(
        manager,
        step,
        phase.item,
        wanted.params,
        {"opt_state": wanted.opt_state, "step": wanted.step},
    )
    return State(params, **train_state)


def _batches(
    phase: Phase, steps: int, mesh: Mesh, start: int
) -> Iterator[tuple[int, Batch]]:
    """(step, global batch on the mesh) from `start`, made PREFETCH steps ahead by one thread."""
    rows = sharding.local_rows(mesh, phase.batch_size)

    def make(step: int) -> Batch:
        return sharding.place_batch(phase.batch(step, rows), rows, mesh, phase.batch_size)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead = deque(pool.submit(make, step) for step in range(start, steps)[:PREFETCH])
        for step in range(start, steps):
            batch = ahead.popleft().result()
            if step + PREFETCH < steps:
                ahead.append(pool.submit(make, step + PREFETCH))
            yield step, batch
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """Gives `step → whether to save and stop now`, the same answer in every process."""
    if jax.process_count() > 1:  # the coordination service catches SIGTERM and agrees on a step
        yield multihost_utils.reached_preemption_sync_point
        return
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(True))
    try:
        yield lambda step: bool(caught)
    finally:
        signal.signal(signal.SIGTERM, before)


class _NotFinite(Exception):
    def __init__(self, step: int, metrics: dict[str, float]):
        super().__init__(f"loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}")
        self.step = step


class _Report:
    """Reads each step's metrics while the next one runs; shows them and writes them down."""

    def __init__(self, phase: Phase, settings: TrainSettings, directory: Path):
        lead = jax.process_index() == 0
        self._telemetry = Telemetry(directory) if lead else None
        self._bar = ProgressBar(phase.name, settings.steps, visible=lead)
        self._batch_size, self._settings = phase.batch_size, settings
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
        """Waits for the step taken over last. Raises _NotFinite if it was not made."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in metrics.items()}
        done = step + 1
        if metrics.pop("updates") != done:
            raise _NotFinite(step, metrics)
        self._bar.advance(done)
        if done == self._settings.steps or _due(done, self._settings.log_every):
            self._log(done, metrics)
        elif self._since is None:
            self._since = (done, time.perf_counter())  # the first step compiled: not counted

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        values = {f"eval/{name}": float(value) for name, value in values.items()}
        self._bar.note(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
        self._write(step, values)
        self._since = (step, time.perf_counter())

    def close(self) -> None:
        self._bar.close()
        if self._telemetry:
            self._telemetry.close()

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        text, now = f"loss {metrics['loss']:.4f}", time.perf_counter()
        if self._since and step > self._since[0]:
            speed = (step - self._since[0]) / (now - self._since[1])
            metrics |= {"steps_per_s": speed, "items_per_s": speed * self._batch_size}
            text += f"  {speed:.2f} steps/s  {speed * self._batch_size:.0f} items/s"
        self._since = (step, now)
        self._bar.report(step, text)
        self._write(step, metrics)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._telemetry:
            self._telemetry.scalars(step, values)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _summary(phase: Phase, state: State, frozen: dict[str, Params], mesh: Mesh) -> str:
    def millions(tree: Params) -> str:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M"

    items = [f"{phase.item} {millions(state.params)} parameters"]
    items += [f"{name} {millions(tree)} frozen" for name, tree in frozen.items()]
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    return (
        f"{phase.name}: {', '.join(items)}; {mesh.size} device(s) ({kind}) of "
        f"{jax.process_count()} process(es), {shape}; from step {int(state.step)}"
    )
