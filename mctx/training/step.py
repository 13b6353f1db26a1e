"""One optimizer step as a pure function: schedule, AdamW, gradients of micro-batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mctx.errors import UserError

Params = Any  # a plain dict tree of arrays
Batch = dict[str, Any]  # name → array whose leading axis is the batch
Metrics = dict[str, jax.Array]  # name → scalar
# (params, frozen items, batch, key) → (loss, metrics)
Loss = Callable[[Params, dict[str, Params], Batch, jax.Array], tuple[jax.Array, Metrics]]


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast one phase trains.

    Attributes:
      steps: optimizer updates in all, those of earlier runs included.
      learning_rate: the peak, reached after `warmup` steps.
      schedule: 'constant', 'cosine' or 'wsd'; the last two end at `final_fraction` of the peak,
        wsd by a straight line over the last `decay_fraction` of the steps.
      weight_decay: acts on matrices only (`is_matrix`).
      clip: largest global norm of a gradient.
      grad_accum: micro-batches that a batch is read in.
      save_every, log_every, eval_every: steps; 0 is "only at the end".
      keep: newest checkpoints kept, None for all.
      keep_best: best ones kept besides, of those that were evaluated when they were saved.
      best: the evaluation's number that tells the best, the least; '-name' where it is the most.
      profile: early steps recorded in WORKDIR/<phase>/profile.
      wandb: project of Weights & Biases to which metrics go as well.
      data, fsdp, head: sizes of the mesh; data=-1 is every device that the others leave.
    """

    steps: int
    learning_rate: float
    warmup: int = 0
    schedule: str = "cosine"
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 1.0
    grad_accum: int = 1
    seed: int = 0
    save_every: int = 1000
    keep: int | None = 2
    keep_best: int = 0
    best: str = "nll"
    log_every: int = 10
    eval_every: int = 0
    profile: int = 0
    wandb: str | None = None
    data: int = -1
    fsdp: int = 1
    head: int = 1


class State(NamedTuple):
    """All that changes from step to step."""

    params: Params
    opt_state: Any
    step: jax.Array  # [] int32, updates made so far


def make_schedule(settings: TrainSettings) -> optax.Schedule:
    """Step → learning rate. Raises UserError for an unknown schedule."""
    peak, warmup = settings.learning_rate, settings.warmup
    floor = peak * settings.final_fraction
    rest = max(1, settings.steps - warmup)
    decay = max(1, round(rest * settings.decay_fraction))
    constant = optax.constant_schedule(peak)
    shapes = {
        "constant": constant,
        "cosine": optax.cosine_decay_schedule(peak, rest, settings.final_fraction),
        "wsd": optax.join_schedules(
            [constant, optax.linear_schedule(peak, floor, decay)], [rest - decay]
        ),
    }
    if settings.schedule not in shapes:
        raise UserError(f"schedule '{settings.schedule}' is unknown: use one of {list(shapes)}.")
    # Starts above 0, so that the first step learns already.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, shapes[settings.schedule]], [warmup])


# Of stacked layers they have two axes and more, as matrices do.
SPARED = "scale", "bias", "mean", "gate", "kept_place"


def is_matrix(path: tuple, leaf: Any) -> bool:
    """Whether weight decay acts on a leaf."""
    return np.ndim(leaf) >= 2 and getattr(path[-1], "key", None) not in SPARED


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            make_schedule(settings),
            b1=settings.b1,
            b2=settings.b2,
            weight_decay=settings.weight_decay,
            mask=partial(jax.tree.map_with_path, is_matrix),
        ),
    )


def gradients(
    loss: Loss,
    params: Params,
    frozen: dict[str, Params],
    batch: Batch,
    key: jax.Array,
    grad_accum: int = 1,
) -> tuple[Params, Metrics]:
    """Gradients and metrics ('loss' among them) of a batch, read in `grad_accum` parts.

    Parts are averaged by the 'weight' in their metrics (1 where there is none), which makes the
    result that of one pass over the whole batch where the loss draws nothing: each part has a key
    of its own, and so draws other numbers than the whole batch would. 'weight' itself is summed.
    """

    def part(batch: Batch, key: jax.Array):
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, key)
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        return grads, {**metrics, "loss": value}

    if grad_accum == 1:
        return part(batch, key)

    def weighted(batch: Batch, key: jax.Array):
        grads, metrics = part(batch, key)
        weight = metrics.pop("weight", jnp.float32(1))

        def weigh(mean):  # a part without a target counts for nothing, even if its mean is 0 / 0
            return jnp.where(weight > 0, mean * weight, 0)

        return jax.tree.map(weigh, (grads, metrics)), weight

    def add(total, part_and_key):
        return jax.tree.map(jnp.add, total, weighted(*part_and_key)), None

    # Strided parts [A, B/A, …]: each device splits its own rows and nothing moves between them.
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, grad_accum, *x.shape[1:]), 1, 0), batch
    )
    shapes = jax.eval_shape(weighted, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (summed, weight), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, grad_accum)))
    grads, metrics = jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1), summed)
    return grads, {**metrics, "weight": weight}


def make_step(loss: Loss, settings: TrainSettings) -> Callable:
    """The function (state, frozen, batch, step) → (state, metrics) that the loop compiles.

    An update that is not finite is not made, and none after it either (`state.step` falls behind
    `step`), so the state stays the one from which the failing step can be repeated. The metric
    'updates' is `state.step`: a step that was made has updates = step + 1.
    """
    optimizer, rate = make_optimizer(settings), make_schedule(settings)

    def step_fn(state: State, frozen: dict[str, Params], batch: Batch, step: jax.Array):
        key = step_key(settings.seed, step)
        grads, metrics = gradients(loss, state.params, frozen, batch, key, settings.grad_accum)
        norm = optax.tree.norm(grads)
        sound = (state.step == step) & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updated = State(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        state = jax.tree.map(partial(jnp.where, sound), updated, state)
        extra = {"grad_norm": norm, "learning_rate": rate(step), "updates": state.step}
        return state, {**metrics, **extra}

    return step_fn


def init_key(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
