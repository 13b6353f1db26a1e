"""The train loop on a toy: resume, sharding, accumulation, frozen items, stopping."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx import checkpoint, sharding
from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE, read_scalars
from mctx.training import loop
from mctx.training.loop import Phase, TrainSettings, train
from mctx.training.step import gradients, is_matrix, make_schedule

ROWS, WIDTH = 16, 4


def loss(params, frozen, batch, key):
    """Masked regression through a frozen layer, with noise that depends on the key."""
    noise = 0.01 * jax.random.normal(key, (WIDTH,))
    hidden = jnp.tanh(batch["x"] @ frozen["base"]["kernel"] + noise)  # [B, 4]
    error = (hidden @ params["kernel"] + params["bias"] - batch["y"]) ** 2  # [B]
    count = batch["mask"].sum()
    return (error * batch["mask"]).sum() / count, {"weight": count}


def make_batch(step, rows):
    """Row i of step s is a function of (s, i) alone; masks are ragged."""
    table = [np.random.default_rng((step, row)) for row in range(rows.start, rows.stop)]
    x = np.stack([rng.normal(size=WIDTH) for rng in table]).astype(np.float32)
    mask = np.array([row == 0 or rng.random() < 0.4 for row, rng in enumerate(table)], np.float32)
    return {"x": x, "y": x.sum(-1), "mask": mask}


def init(key):
    return {"kernel": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())}


PHASE = Phase(
    name="lens",
    item="lensnet",
    init=init,
    loss=loss,
    batch=make_batch,
    batch_size=ROWS,
    config={"lensnet": {"width": WIDTH, "fanouts": (4, 4)}},
    frozen={"base": {"kernel": np.eye(WIDTH, dtype=np.float32)}},
)
SETTINGS = TrainSettings(
    steps=8, learning_rate=0.05, warmup=2, save_every=3, log_every=1, seed=1, data=2
)


def assert_same(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), left, right)


def assert_close(left, right, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), left, right
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, jax.device_get(train(PHASE, SETTINGS, workdir))


def test_killed_and_resumed_run_ends_bit_for_bit_equal(whole_run, tmp_path):
    class Killed(Exception):
        pass

    def dies(step, rows):
        if step == 7:  # made while step 5 runs: steps 3 is saved, later ones are lost
            raise Killed
        return make_batch(step, rows)

    workdir, expected = whole_run
    with pytest.raises(Killed):
        train(replace(PHASE, batch=dies), SETTINGS, tmp_path)
    assert checkpoint.latest_step(tmp_path / "lens", "lensnet") in (3, 6)
    assert_same(train(PHASE, SETTINGS, tmp_path), expected)
    losses = [[row["loss"] for row in read_scalars(d / "lens")] for d in (workdir, tmp_path)]
    assert losses[0] == losses[1] and len(losses[0]) == SETTINGS.steps


def test_finished_run_is_returned_not_repeated(whole_run):
    workdir, expected = whole_run

    def no_batch(step, rows):
        raise AssertionError("a finished run reads no batch")

    assert_same(train(replace(PHASE, batch=no_batch), SETTINGS, workdir), expected)


def test_training_learns_and_logs(whole_run):
    workdir, _ = whole_run
    rows = read_scalars(workdir / "lens")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"grad_norm", "learning_rate", "steps_per_s", "items_per_s"} <= set(rows[-1])
    assert list((workdir / "lens" / "tensorboard").iterdir())


def test_only_the_newest_checkpoints_are_kept(whole_run):
    workdir, _ = whole_run
    steps = sorted(int(p.name) for p in (workdir / "lens").iterdir() if p.name.isdigit())
    assert steps == [6, 8]


@cache
def _gradients_on(devices, parts):
    """(params, frozen, batch) → gradients and metrics, on so many devices in so many parts."""

    def noiseless(params, frozen, batch, key):  # parts draw other noise, and rightly so
        error = (batch["x"] @ frozen["base"]["kernel"] @ params["kernel"] - batch["y"]) ** 2
        count = batch["mask"].sum()
        return (error * batch["mask"]).sum() / jnp.maximum(count, 1), {"weight": count}

    mesh = sharding.mesh(data=devices)
    compiled = jax.jit(lambda *inputs: gradients(noiseless, *inputs, jax.random.key(0), parts))

    def run(params, frozen, batch):
        batch = sharding.place_batch(batch, slice(0, ROWS), mesh, ROWS)
        return jax.device_get(
            compiled(sharding.place(params, mesh), sharding.place(frozen, mesh), batch)
        )

    return run


@given(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
@settings(max_examples=25)
def test_gradients_of_a_ragged_batch_do_not_depend_on_devices_or_parts(mask):
    batch = make_batch(0, slice(0, ROWS)) | {"mask": np.array(mask, np.float32)}
    inputs = ({"kernel": np.arange(WIDTH, dtype=np.float32)}, PHASE.frozen, batch)
    grads, metrics = _gradients_on(1, 1)(*inputs)
    assert metrics["weight"] == sum(mask) and np.isfinite(grads["kernel"]).all()
    for devices, parts in ((8, 1), (1, 4), (8, 2)):
        assert_close(_gradients_on(devices, parts)(*inputs), (grads, metrics))


def test_accumulated_run_equals_the_run_of_whole_batches(tmp_path):
    def quiet(params, frozen, batch, key):
        return loss(params, frozen, batch, jax.random.key(0))

    phase = replace(PHASE, loss=quiet)
    whole, parts = (
        train(phase, replace(SETTINGS, grad_accum=n, steps=3), tmp_path / str(n)) for n in (1, 8)
    )
    assert_close(whole, parts)  # some of the parts have no target at all


def test_run_goes_on_to_the_same_end_on_another_mesh(whole_run, tmp_path, monkeypatch):
    _, expected = whole_run
    with pytest.raises(loop.Preempted):
        train(replace(PHASE, batch=_stop_at(4)), SETTINGS, tmp_path)
    assert 2 <= checkpoint.latest_step(tmp_path / "lens", "lensnet") <= 5
    monkeypatch.setattr(sharding, "LARGE", 1)
    resumed = train(PHASE, replace(SETTINGS, data=2, fsdp=4), tmp_path)
    assert resumed["kernel"].sharding.spec == jax.sharding.PartitionSpec("fsdp")
    assert_close(resumed, expected)


def _stop_at(step_to_stop):
    """A batch source that sends this process SIGTERM."""

    def batch(step, rows):
        if step == step_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(step, rows)

    return batch


def test_frozen_items_have_no_optimizer_state_and_are_not_saved(whole_run):
    workdir, expected = whole_run
    step = workdir / "lens" / "8"
    assert {p.name for p in step.iterdir() if p.is_dir()} == {"lensnet", "train", "config"}
    with checkpoint.ocp.Checkpointer(checkpoint.ocp.StandardCheckpointHandler()) as reader:
        leaves = jax.tree.leaves(reader.metadata(step / "train").item_metadata.tree)
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.dtype == np.float32)
    assert numbers == 2 * sum(leaf.size for leaf in jax.tree.leaves(expected))  # two moments


def test_frozen_items_get_no_gradient_and_are_no_constants():
    inputs = ({"kernel": np.ones(WIDTH, np.float32)}, make_batch(0, slice(0, ROWS)))
    once = _gradients_on(1, 1)
    results = []
    for scale in (1, 2):
        frozen = {"base": {"kernel": scale * np.eye(WIDTH, dtype=np.float32)}}
        grads, metrics = once(inputs[0], frozen, inputs[1])
        assert set(grads) == {"kernel"}
        results.append(metrics["loss"])
    assert results[0] != results[1]


def test_train_passes_the_frozen_items_it_was_given(whole_run, tmp_path):
    _, expected = whole_run
    other = replace(PHASE, frozen={"base": {"kernel": 2 * np.eye(WIDTH, dtype=np.float32)}})
    params = train(other, SETTINGS, tmp_path)
    assert not np.allclose(params["kernel"], expected["kernel"])
    np.testing.assert_array_equal(other.frozen["base"]["kernel"], 2 * np.eye(WIDTH))


@pytest.mark.parametrize("bad", [0, 4])
def test_a_step_that_is_not_finite_stops_the_run_before_it(tmp_path, bad):
    def poisoned(step, rows):
        batch = make_batch(step, rows)
        return batch | {"y": batch["y"] + (np.nan if step == bad else 0)}

    with pytest.raises(UserError, match=rf"step {bad} .*lens/{bad}"):
        train(replace(PHASE, batch=poisoned), SETTINGS, tmp_path)
    healthy = train(PHASE, replace(SETTINGS, save_every=4), tmp_path / "healthy")
    assert_same(train(PHASE, SETTINGS, tmp_path), healthy)  # goes on from before the failure
    assert np.isfinite(healthy["kernel"]).all()


def test_sigterm_saves_and_exits_0(tmp_path):
    script = (
        "import dataclasses, time; from tests.training.test_loop import *\n"
        "def slow(step, rows):\n    time.sleep(0.02); return make_batch(step, rows)\n"
        "train(dataclasses.replace(PHASE, batch=slow),"
        f" dataclasses.replace(SETTINGS, steps=100_000, save_every=0), {str(tmp_path)!r})"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "lens" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    step = checkpoint.latest_step(tmp_path / "lens", "lensnet")
    assert step == read_scalars(tmp_path / "lens")[-1]["step"] > 0


@pytest.mark.parametrize(
    ("phase", "changes", "sentence"),
    [
        (replace(PHASE, batch_size=12), {"data": -1}, "multiple of 8"),
        (PHASE, {"data": 8, "grad_accum": 4}, "multiple of 32"),
        (PHASE, {"data": 3, "fsdp": 3}, "does not fit the 8"),
        (PHASE, {"schedule": "sine"}, "schedule 'sine' is unknown"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, phase, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train(phase, replace(SETTINGS, **changes), tmp_path)


def test_resume_with_another_config_is_refused(whole_run):
    workdir, _ = whole_run
    other = replace(PHASE, config={"lensnet": {"width": 5}})
    with pytest.raises(UserError, match="another model config"):
        train(other, SETTINGS, workdir)


def test_evaluations_are_logged(tmp_path):
    phase = replace(PHASE, evaluate=lambda params, frozen: {"bias": params["bias"]})
    train(phase, replace(SETTINGS, eval_every=5), tmp_path)
    found = [row["step"] for row in read_scalars(tmp_path / "lens") if "eval/bias" in row]
    assert found == [5, 8]


def test_an_evaluation_that_a_stop_left_out_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    phase = replace(PHASE, evaluate=lambda params, frozen: {"bias": params["bias"]})
    every = replace(SETTINGS, eval_every=2)
    began = loop.Report.step

    def stopped(report, step, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        began(report, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(loop.Preempted):
        patch.setattr(loop.Report, "step", stopped)
        train(phase, every, tmp_path)

    def judged():
        lines = (tmp_path / "lens" / METRICS_FILE).read_text().splitlines()
        return [row["step"] for row in map(json.loads, lines) if "eval/bias" in row]

    assert judged() == [2]
    train(phase, every, tmp_path)
    assert judged() == [2, 4, 6, 8]
    train(phase, every, tmp_path)  # what was judged is not judged again
    assert judged() == [2, 4, 6, 8]


def test_the_best_is_kept_a_few_steps_are_profiled_and_utilisation_is_told(tmp_path, monkeypatch):
    # A device of known speed, at which a step would take so many seconds.
    monkeypatch.setattr(loop, "peak", lambda kind: 1e6)
    judged = iter((np.nan, 1.0, 3.0, 4.0))  # what is not finite is never the best
    phase = replace(PHASE, evaluate=lambda params, frozen: {"nll": next(judged)})
    changes = dict(keep=1, keep_best=1, save_every=2, eval_every=2, profile=2)
    train(phase, replace(SETTINGS, **changes), tmp_path)
    folder = tmp_path / "lens"
    assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["4", "8"]
    assert list((folder / "profile").rglob("*.xplane.pb"))
    row = read_scalars(folder)[-1]
    products = 3 * 2 * ROWS * WIDTH  # of the trained layer: forward, and its kernel's gradient
    assert row["mfu"] > 0
    ideal = row["mfu"] / row["steps_per_s"] * 1e6 * SETTINGS.data
    assert products / 3 <= ideal <= 20 * products + 4 * ROWS * WIDTH**2
    with pytest.raises(UserError, match="no 'bias': set train.best to one of nll"):
        _score_of(phase, replace(SETTINGS, **changes, best="-bias"), tmp_path / "other")
    assert checkpoint.latest_step(tmp_path / "other" / "lens", "lensnet") == 2  # it is not lost


def _score_of(phase, settings, workdir):
    train(replace(phase, evaluate=lambda params, frozen: {"nll": 1.0}), settings, workdir)


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_schedules(name):
    rate = make_schedule(replace(SETTINGS, steps=100, warmup=10, schedule=name))
    values = np.array([rate(step) for step in range(101)])
    assert values[0] > 0 and np.all(np.diff(values[:11]) > 0)
    assert values[10] == values.max() == pytest.approx(0.05)
    assert np.all(np.diff(values[10:]) <= 1e-9)
    assert values[100] == pytest.approx(0.05 if name == "constant" else 0.005)


def test_weight_decay_acts_on_matrices_only():
    tree = {
        "attn": {"kernel": np.ones((2, 3)), "bias": np.ones((2, 3))},
        "norm": {"scale": np.ones((2, 3))},
        "gate": np.ones((3, 1, 1)),
        "codes": {"mean": np.ones((2, 3)), "inward": np.ones((2, 3))},
    }
    decayed = jax.tree.map_with_path(is_matrix, tree)
    assert decayed == {
        "attn": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "gate": False,
        "codes": {"mean": False, "inward": True},
    }
