"""Joins the processes of a job, before anything asks for a device (design: Scale).

    TPU pod             found by JAX itself, where MCTX_TPU_POD=1 (launch/tpu_pod.sh) or GKE says
                        that there are several hosts
    SLURM               found by JAX itself, in a step (`srun`) of several tasks
    Kubernetes          an indexed Job: JOB_COMPLETION_INDEX, and the two variables below
    by hand             JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=N JAX_PROCESS_ID=i

A process that none of these surround works alone. A run that was told to stop exits with
MCTX_STOPPED_STATUS, 0 where it is not set: to Kubernetes, a pod that exits with 0 is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from mctx.errors import UserError

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
STOPPED = "MCTX_STOPPED_STATUS"
POD_INDEX = "JOB_COMPLETION_INDEX"  # that Kubernetes gives to the pods of an indexed Job
GRACE = 300  # seconds that processes wait for each other at the end: checkpoints are written then


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Calls `jax.distributed.initialize` where the environment tells of several processes.

    Raises UserError where what it tells is incomplete or nobody answers.
    """
    how = settings(environment)
    if how is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**how, shutdown_timeout_seconds=GRACE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this job did not find each other ({_brief(error)}): check that all "
            f"have started and reach {how.get('coordinator_address', 'the first one')}."
        ) from error


def settings(environment: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize`; None for a process alone."""
    by_hand = {name: environment[name] for name in (COORDINATOR, COUNT) if name in environment}
    if by_hand:
        index = environment.get(INDEX, environment.get(POD_INDEX))
        missing = [name for name in (COORDINATOR, COUNT) if name not in by_hand]
        missing += [INDEX] * (index is None)
        if missing:
            raise UserError(f"{' and '.join(by_hand)} without {' and '.join(missing)}: set all.")
        try:
            count, number = int(by_hand[COUNT]), int(index)
        except ValueError:
            raise UserError(f"{COUNT} and {INDEX} must be whole numbers.") from None
        return dict(
            coordinator_address=by_hand[COORDINATOR], num_processes=count, process_id=number
        )
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return {}
    several_hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return {} if several_hosts or environment.get("MCTX_TPU_POD") == "1" else None


def stopped_status(environment: Mapping[str, str] = os.environ) -> int:
    """The exit status of a run that was told to stop and has saved, 0 … 255; else UserError."""
    text = environment.get(STOPPED, "0")
    if not text.isdecimal() or int(text) > 255:
        raise UserError(f"{STOPPED} is '{text}': give an exit status, 0 to 255.")
    return int(text)


def check_devices(expected: int | None) -> None:
    """Says what this job runs on; UserError where that is not the number of devices expected."""
    found, kind = jax.device_count(), jax.devices()[0].device_kind
    if jax.process_index() == 0:
        here = f"{jax.process_count()} process(es), {jax.local_device_count()} in the first"
        print(f"{found} device(s) ({kind}) of {here}", flush=True)
    if expected is not None and found != expected:
        raise UserError(
            f"{expected} device(s) were expected and {found} are there, in {jax.process_count()} "
            "process(es): check the launcher's process count, or give another --config.devices."
        )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
