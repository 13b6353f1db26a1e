"""The one train loop: every phase (base, gist, lens, mof, lora) is a value that `train` runs.

One compiled step over the mesh with donated state; batches are made ahead by a
thread and metrics are read one step late, so the device waits for neither. All that a step uses
is a function of (seed, step): a resumed run repeats what the killed one would have done.
"""

import json
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mctx import checkpoint, sharding
from mctx.errors import UserError
from mctx.flops import peak, plain_flops
from mctx.training.reporting import NotFinite, Report, due, profiler
from mctx.training.step import (
    Batch,
    Loss,
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
      name: 'base', 'gist', 'lens', 'mof' or 'lora'; also the folder of the workdir it writes.
      item: the checkpoint item it trains: 'base', 'gistnet', 'lensnet', 'mof' or 'lora'.
      init: key → the parameters that are trained; traceable by `jit`.
      loss: (params, frozen, batch, key) → (loss, metrics), all scalars. The loss is a mean over
        the batch, sum / count over ALL its rows, so that it is right however rows are sharded.
        Where that count is ragged, metrics carry it as 'weight': micro-batches are averaged by it.
      batch: (step, rows) → those rows of the global batch of that step; a pure function.
      batch_size: rows of the global batch.
      config: JSON-able {item: model config}, saved with every checkpoint.
      frozen: other items by name. They are arguments of the step, never constants in it, and get
        neither gradient nor optimizer state (design: law 4).
      calibrate: (fresh params, frozen) → params to start from; traceable by `jit`.
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
    calibrate: Callable[[Params, dict[str, Params]], Params] | None = None
    evaluate: Callable[[Params, dict[str, Params]], dict[str, float]] | None = None


class Preempted(SystemExit):
    """The run was told to stop and its state is saved; uncaught, the program exits with 0."""


def train(
    phase: Phase,
    settings: TrainSettings,
    workdir: str | Path,
    begins: Callable[[Path], None] | None = None,
) -> Params:
    """Trains `phase` in WORKDIR/<phase.name>, going on from its latest checkpoint if it has one.

    `begins` is told that folder by the leading process, once it is sure that the run can begin.

    Returns the trained parameters, placed on the mesh. SIGTERM saves and raises Preempted.
    Raises UserError for sizes that do not fit, for a checkpoint of another configuration, and
    when a step is not finite (the state before that step is saved; its step is in the message).
    """
    directory = Path(workdir) / phase.name
    mesh = sharding.mesh(settings.data, settings.fsdp, settings.head)
    check_batch_size(phase.batch_size, settings, mesh)
    at_peak = partial(_seconds_at_peak, phase, settings, mesh)
    with (
        jax.set_mesh(mesh),
        checkpoint.manager(directory, settings.keep, settings.keep_best) as manager,
        closing(
            Report(phase.name, phase.batch_size, settings, directory, at_peak)
        ) as report,
        _stop_requests() as stop_requested,
    ):
        frozen = sharding.place(phase.frozen, mesh)
        wanted = abstract_state(phase, settings, mesh)
        state = _initial_state(phase, settings, wanted, frozen, manager)
        if begins and jax.process_index() == 0:
            begins(directory)
        start = int(state.step)
        saver = _Saver(phase, settings, manager, start)
        report.begin(start, _summary(phase, state, frozen, mesh))
        step_fn = jit_step(phase, settings, wanted, mesh)
        judged_at_start = phase.evaluate and start and due(start, settings.eval_every)
        if judged_at_start and not report.has_evaluation(start):  # a run told to stop has none
            report.evaluation(start, phase.evaluate(state.params, frozen))
        try:
            with (
                closing(batches_ahead(phase, settings.steps, mesh, start)) as batches,
                profiler(directory, start, settings.profile) as profile,
            ):
                for step, batch in batches:
                    profile(step, report.catch_up)
                    state, metrics = step_fn(state, frozen, batch, step)
                    report.step(step, metrics)
                    done, last = step + 1, step + 1 == settings.steps
                    stop, values = stop_requested(done) and not last, None
                    saves = stop or last or due(done, settings.save_every)
                    judges = not stop and (last or due(done, settings.eval_every))
                    if saves or judges:
                        report.catch_up()  # never save, nor judge, behind an unseen failure
                    if judges and phase.evaluate:
                        values = phase.evaluate(state.params, frozen)
                        report.evaluation(done, values)
                    if saves:
                        saver.save(state, done, values)
                    if stop:
                        report.note(f"told to stop: step {done} is saved")
                        raise Preempted(0)
        except NotFinite as failure:
            saver.save(state, failure.step)
            raise UserError(
                f"step {failure.step} of phase '{phase.name}' is not finite ({failure}): the state "
                f"before it is saved in {directory / str(failure.step)}; look at that batch or "
                "start again with a lower learning rate."
            ) from None
        return state.params  # leaving the manager waits until what was saved is durable


class _Saver:
    """Writes the checkpoints of one run, each step once."""

    def __init__(self, phase: Phase, settings: TrainSettings, manager, start: int):
        self._phase, self._settings, self._manager = phase, settings, manager
        self._saved = start or None  # a run that begins has saved nothing

    def save(self, state: State, step: int, values: dict[str, float] | None = None) -> None:
        """`values` are those of an evaluation at this step, if there was one. Raises UserError
        where they lack what tells the best: the step is saved, so that no training is lost."""
        if step != self._saved:
            self._saved = step
            train_state = {"opt_state": state.opt_state, "step": state.step}
            item, config = self._phase.item, self._phase.config
            score = _score(self._settings, values)
            checkpoint.save(self._manager, step, item, state.params, train_state, config, score)
            _check_best(self._settings, values)


def _seconds_at_peak(phase: Phase, settings: TrainSettings, mesh: Mesh) -> float | None:
    """Of a step, if its matrix products ran at the devices' peak; None where that is not known."""
    speed = peak(mesh.devices.flat[0].device_kind)
    if speed is None:
        return None
    inputs = abstract_inputs(phase, settings, mesh)
    return plain_flops(make_step(phase.loss, settings), *inputs) / (speed * mesh.size)


def check_batch_size(batch_size: int, settings: TrainSettings, mesh: Mesh) -> None:
    """Raises UserError where the devices and micro-batches cannot share a batch evenly."""
    if min(batch_size, settings.grad_accum) < 1 or settings.steps < 0:
        raise UserError("batch_size and train.grad_accum must be positive, train.steps from 0 on.")
    parts = sharding.batch_ways(mesh) * settings.grad_accum
    if batch_size % parts:
        raise UserError(
            f"a batch of {batch_size} cannot be split over {sharding.batch_ways(mesh)} device(s) "
            f"× grad_accum={settings.grad_accum}: make it a multiple of {parts}."
        )


def abstract_state(phase: Phase, settings: TrainSettings, mesh: Mesh) -> State:
    """The shapes of the state, each with its place on the mesh."""
    optimizer = make_optimizer(settings)

    def fresh(key: jax.Array) -> State:
        params = phase.init(key)
        return State(params, optimizer.init(params), jnp.int32(0))

    return sharding.abstract(jax.eval_shape(fresh, init_key(settings.seed)), mesh)


def abstract_inputs(
    phase: Phase, settings: TrainSettings, mesh: Mesh
) -> tuple[State, dict[str, Params], Batch, jax.ShapeDtypeStruct]:
    """What a step takes, (state, frozen, batch, step), as shapes with their places."""
    rows = sharding.batch_sharding(mesh)

    def whole(leaf) -> jax.ShapeDtypeStruct:
        shape = (phase.batch_size, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.asarray(leaf).dtype, sharding=rows)

    return (
        abstract_state(phase, settings, mesh),
        sharding.abstract(phase.frozen, mesh),
        jax.tree.map(whole, phase.batch(0, slice(0, 1))),
        jax.ShapeDtypeStruct((), jnp.int32),
    )


def jit_step(phase: Phase, settings: TrainSettings, state: State, mesh: Mesh) -> Callable:
    """The compiled step of a phase, whose state stays where the shapes of `state` say it lies."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = NamedSharding(mesh, PartitionSpec())
    step_fn = make_step(phase.loss, settings)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(placed, everywhere))


def _score(settings: TrainSettings, values: dict[str, float] | None) -> float | None:
    """What an evaluation says of a checkpoint, less is better; None where nothing does."""
    name = settings.best.removeprefix("-")
    if not settings.keep_best or values is None or name not in values:
        return None
    return -float(values[name]) if settings.best.startswith("-") else float(values[name])


def _check_best(settings: TrainSettings, values: dict[str, float] | None) -> None:
    name = settings.best.removeprefix("-")
    if settings.keep_best and values is not None and name not in values:
        raise UserError(
            f"the evaluation has no '{name}': set train.best to one of {', '.join(values)}."
        )


def _initial_state(
    phase: Phase, settings: TrainSettings, wanted: State, frozen: dict[str, Params], manager
) -> State:
    """The state of the latest checkpoint, or a fresh one; each leaf where `wanted` says."""
    step = checkpoint.latest_step(manager.directory, phase.item)
    if step is None:
        return fresh_state(phase, settings, wanted, frozen)

    if checkpoint.read_config(manager.directory, step) != json.loads(json.dumps(phase.config)):
        raise UserError(
            f"{manager.directory} was trained with another model config: go on with that one, or "
            "choose another workdir."
        )
    params, train_state = checkpoint.restore_train_state(
        manager,
        step,
        phase.item,
        wanted.params,
        {"opt_state": wanted.opt_state, "step": wanted.step},
    )
    return State(params, **train_state)


def fresh_state(
    phase: Phase, settings: TrainSettings, wanted: State, frozen: dict[str, Params]
) -> State:
    """The state before the first step, each leaf where `wanted` says."""
    where = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    params = jax.jit(phase.init, out_shardings=where.params)(init_key(settings.seed))
    if phase.calibrate:
        params = jax.jit(phase.calibrate, out_shardings=where.params)(params, frozen)
    start = jax.jit(make_optimizer(settings).init, out_shardings=where.opt_state)(params)
    return State(params, start, jax.device_put(np.int32(0), where.step))


def batches_ahead(
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
