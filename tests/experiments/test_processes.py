"""What the environment tells of a job is what JAX is told."""

import sys

import jax
import pytest

from experiments import entry, processes, train
from mctx.errors import UserError
from mctx.training.loop import Preempted
from tests.training.test_phases import CONFIGS

BY_HAND = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}
TOLD = dict(coordinator_address="a:1", num_processes=4, process_id=3)


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({}, None),
        (BY_HAND | {"JAX_PROCESS_ID": "3"}, TOLD),
        (BY_HAND | {"JOB_COMPLETION_INDEX": "3"}, TOLD),  # Kubernetes
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16"}, {}),  # JAX knows the rest
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"MCTX_TPU_POD": "1"}, {}),
    ],
)
def test_jobs_of_every_kind(environment, how):
    assert processes.settings(environment) == how


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (BY_HAND, "without JAX_PROCESS_ID: set all"),
        ({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, "without JAX_COORDINATOR_ADDRESS"),
        (BY_HAND | {"JAX_PROCESS_ID": "last"}, "must be whole numbers"),
    ],
)
def test_half_a_job_is_refused(environment, sentence):
    with pytest.raises(UserError, match=sentence):
        processes.settings(environment)


def test_a_process_alone_joins_nothing_and_nobody_is_an_error(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: asked.append(how))
    processes.join({})
    assert asked == []

    def nobody(**how):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    with pytest.raises(UserError, match="DEADLINE.*all have started and reach a:1"):
        processes.join(BY_HAND | {"JAX_PROCESS_ID": "3"})


def test_what_a_run_that_was_told_to_stop_exits_with(monkeypatch):
    def told_to_stop(*_):
        raise Preempted(0)

    command = ["train", f"--config={CONFIGS / 'pico_base.py'}", "--workdir=w", "--config.corpus=c"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(train, "run", told_to_stop)
    for status in ("0", "75"):
        monkeypatch.setenv("MCTX_STOPPED_STATUS", status)
        with pytest.raises(SystemExit) as left:
            entry.run(train.main)
        assert left.value.code == int(status)

    assert processes.stopped_status({}) == 0
    assert processes.stopped_status({"MCTX_STOPPED_STATUS": "75"}) == 75
    for bad in ("many", "-1", "256", ""):
        with pytest.raises(UserError, match="give an exit status"):
            processes.stopped_status({"MCTX_STOPPED_STATUS": bad})


def test_the_devices_are_told_and_another_number_is_refused(capsys):
    processes.check_devices(None)
    processes.check_devices(8)
    assert capsys.readouterr().out.startswith("8 device(s) (cpu) of 1 process(es)")
    with pytest.raises(UserError, match="16 device.s. were expected and 8 are there"):
        processes.check_devices(16)
