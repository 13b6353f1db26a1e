"""The rows of `bench resume`: runs that are killed again and again, what saving and starting cost.

A chain is one run that is stopped at a random step, goes on in another number of processes, is
stopped again, and so on to its end; its losses are those of a run that nobody stopped, or the run
does not resume. On the mesh of that run they must be the same numbers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import corpus
from experiments.bench import job, saving
from experiments.bench.measure import row
from experiments.toy import TRAINING, VALIDATION
from mctx.errors import UserError
from mctx.telemetry import METRICS_FILE, read_scalars

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "experiments/launch/local.sh"
DEVICES = 8  # of every job, fake ones of the CPU
PATIENCE = 600  # seconds that a job may take for its next step
INTERVAL = "quartiles of the repetitions"
NOTES = [
    "Jobs of 1, 2 or 4 processes with 8 fake CPU devices in all, and one of one device; every stop "
    "is followed by a start, on another process count where the row says so.",
]
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


class Sizes(NamedTuple):
    """Stops of a chain, most steps between two of them, and what saving and starting take."""

    trials: int
    stride: int
    saves: int
    starts: int


FULL, SMOKE = Sizes(20, 12, 5, 3), Sizes(1, 6, 0, 0)
PARTS = ("kill", "term", "save", "start")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all parts, or of those in --only; what is written is removed again."""
    wanted = [name for name in args.only.split(",") if name] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    sizes, rows = SMOKE if args.smoke else FULL, []
    if args.workdir:
        args.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-resume-", dir=args.workdir))
    try:
        for name, how in (("kill", "kill -9"), ("term", "SIGTERM")):
            if name in wanted:
                rows += stopped(folder / name, sizes, args.seed, how)
        if "save" in wanted and sizes.saves:
            rows += saving.share(folder / "save", sizes.saves)
        if "start" in wanted and sizes.starts:
            rows += starts(folder / "start", sizes.starts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


# -- stops -------------------------------------------------------------------------------------


def stopped(folder: Path, sizes: Sizes, seed: int, how: str) -> list[dict]:
    """One chain over changing process counts, one on the mesh of the run that nobody stopped."""
    rows = []
    for where, counts, shape in (
        ("in another number of processes", (2, 1, 4), (4, 2)),
        ("on the same mesh", (1,), (1, 1)),
    ):
        workdir = folder / where.replace(" ", "-")
        rng = np.random.default_rng([seed, len(rows)])
        gaps = rng.integers(1, sizes.stride + 1, sizes.trials)
        steps = int(gaps.sum()) + sizes.trials * job.SAVE_EVERY + 3
        failed = chain(workdir / "stopped", gaps, counts, shape, steps, SIGNALS[how])
        whole = losses(workdir / "whole", steps, shape)
        found = [line.get("loss", np.nan) for line in read_scalars(workdir / "stopped" / "base")]
        apart = np.abs(np.array(found) - whole) if len(found) == steps else np.array([np.inf])
        goal = 0 if counts == (1,) else 1e-5
        n, title = sizes.trials, f"{how}, resumed {where}"
        rows += [
            _count(f"{title}: did not", failed, n),
            _most(f"{title}: loss off by at most", float(apart.max()), goal, steps),
        ]
    return rows


def _count(what: str, value: int, n: int) -> dict:
    return dict(what=what, value=value, unit="runs", goal="0", reached=value == 0, n=n)


def _most(what: str, value: float, goal: float, n: int) -> dict:
    reached = value <= goal
    return dict(what=what, value=value, unit="nats", goal=f"≤ {goal:g}", reached=reached, n=n)


def chain(
    workdir: Path, gaps: np.ndarray, counts: tuple, shape: tuple, steps: int, how: signal.Signals
) -> int:
    """Stops a run len(gaps) times, each so many steps on, then lets it end; how often it failed.

    A failure is a start that makes no step, or a SIGTERM that does not save and exit with 0.
    """
    failed = 0
    for trial, gap in enumerate(gaps):
        before = told(workdir)
        with started(workdir, counts[trial % len(counts)], shape, steps) as group:
            if not _reaches(workdir, group, before + int(gap)):
                failed += 1
                continue
            os.killpg(group.pid, how)
            code = group.wait(PATIENCE)
        if how == signal.SIGTERM:
            failed += code != 0
    with started(workdir, counts[len(gaps) % len(counts)], shape, steps) as group:
        failed += group.wait(PATIENCE) != 0
    return failed


def losses(workdir: Path, steps: int, shape: tuple) -> np.ndarray:
    """Of a run that nobody stops, in one process."""
    with started(workdir, 1, shape, steps) as group:
        group.wait(PATIENCE)
    return np.array([line["loss"] for line in read_scalars(workdir / "base")])


@contextmanager
def started(
    workdir: Path, processes: int, shape: tuple, steps: int
) -> Iterator[subprocess.Popen]:
    """A job in a process group of its own, of which nothing is left at the end."""
    devices = DEVICES if shape != (1, 1) else 1
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= dict(DEVICES=str(devices // processes), PORT=str(_free_port()))
    # Compiled once for all the starts.
    cache = environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "compiled"))
    Path(cache).mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "experiments.bench.job", workdir, steps, *shape]
    group = subprocess.Popen(
        [LOCAL, str(processes), *map(str, program)],
        cwd=ROOT,
        env=environment | dict(PYTHONPATH=str(ROOT)),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield group
    finally:
        try:
            os.killpg(group.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended
        group.wait()


def _reaches(workdir: Path, group: subprocess.Popen, step: int) -> bool:
    """Waits until the job has told of a step; False where it ends or tells of none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and group.poll() is None:
        if told(workdir) >= step:
            return True
        time.sleep(0.01)
    return False


def told(workdir: Path) -> int:
    """The last step in a run's metrics, 0 before there is one."""
    path = workdir / "base" / METRICS_FILE
    rows = read_scalars(path.parent) if path.exists() else []
    return rows[-1]["step"] if rows else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


# -- starts ------------------------------------------------------------------------------------


def starts(folder: Path, repetitions: int) -> list[dict]:
    """Seconds from the command to the end of the first step of the pico base, compiled before."""
    text, place = folder / "text", folder / "corpus"
    library = Path(os.__file__).parent
    for name in (TRAINING[0], *VALIDATION):
        shutil.copytree(library / name, text / name)
    corpus.build(place, place=text, held_out=[], validation=VALIDATION, vocab_size=512)
    cache = folder / "compiled"
    cache.mkdir()
    took = [_first_step(folder / f"run{i}", place, cache) for i in range(repetitions + 1)][1:]
    reached = np.median(took) <= 15
    return [row("start to first step, pico, warm cache", took, "s", "≤ 15", reached)]


def _first_step(workdir: Path, place: Path, cache: Path) -> float:
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu", XLA_FLAGS="", JAX_COMPILATION_CACHE_DIR=str(cache)
    )
    options = ["corpus=" + str(place), "batch_size=1", "eval_segments=1", "eval_batch=1"]
    options += ["train.steps=3", "train.log_every=1", "train.save_every=0"]
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}"]
    command += ["--config=experiments/configs/pico_base.py", *(f"--config.{o}" for o in options)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        while not told(workdir):
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read().decode()[-2000:])
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.communicate()
