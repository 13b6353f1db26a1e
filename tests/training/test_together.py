"""Two processes of four devices train and write what one device does; stopped, one goes on.

Twenty times each, killed and stopped: `python -m experiments.bench resume`.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench import job, resume
from mctx import checkpoint
from mctx.telemetry import METRICS_FILE, read_scalars
from mctx.training.loop import train
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests import tiny
from tests.training import together

# All of them take minutes to compile three times over: `tests/training/together.py` has a command.
PHASES = ["base"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of all phases and a tree: of two processes with four devices, and of one with one."""
    folder = tmp_path_factory.mktemp("together")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"DEVICES": "4", "PORT": str(resume._free_port())}
    command = [resume.LOCAL, "2", sys.executable, "-m", "tests.training.together", folder / "two"]
    command += PHASES
    job = subprocess.Popen(command, cwd=resume.ROOT, env=environment, start_new_session=True)
    try:
        together.train_all(PHASES, folder / "one", together.SETTINGS, data=1)
        together.write_tree(folder / "one" / "tree")
        assert job.wait(900) == 0
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return folder / "two", folder / "one"


@pytest.mark.parametrize("name", PHASES)
def test_every_phase_makes_the_same_steps(both, name):
    two, one = (folder / name for folder in both)
    assert together.apart(two, one) < together.TOLERANCE


@pytest.mark.parametrize("name", PHASES)
def test_the_lead_process_alone_tells(both, name):
    lines = [(folder / name / METRICS_FILE).read_text().count("\n") for folder in both]
    assert lines[0] == lines[1]


def test_one_process_reads_what_two_have_saved(both):
    found, alone = (checkpoint.load_items(f, ("base",))[0] for f in both)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(found))
    shapes = [jax.tree.map(np.shape, params) for params in (found, alone)]
    assert shapes[0] == shapes[1]


def test_both_wrote_one_tree(both):
    two, one = (Tree.open(folder / "tree") for folder in both)
    blocks = together.LENGTH // tiny.GIST.block
    assert two.blocks == one.blocks == blocks
    assert len({epoch for _, epoch, _, _ in two.extents(1)}) > 1  # both had a part in it
    for level in range(1, two.spec.levels + 1):
        every = np.arange(one.count(level))
        np.testing.assert_allclose(
            two.gather(level, every), one.gather(level, every), atol=1e-2
        )
    assert verify(str(both[0] / "tree")).problems == []


def test_two_processes_told_to_stop_save_and_one_goes_on(tmp_path):
    steps, workdir = 14, tmp_path / "stopped"
    assert resume.chain(workdir, np.array([3]), (2, 1), (4, 2), steps, signal.SIGTERM) == 0
    train(job.phase(), job.settings(steps, 4, 2), tmp_path / "whole")
    found, wanted = (read_scalars(d / "base") for d in (workdir, tmp_path / "whole"))
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(found, wanted, strict=True)]
    assert max(apart) <= 1e-5


def test_local_sh_tells_how_it_is_used_and_passes_on_a_failure():
    wrong = subprocess.run([resume.LOCAL, "none"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "local.sh N COMMAND" in wrong.stderr
    script = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 7; else sleep 60; fi'
    done = subprocess.run([resume.LOCAL, "2", "bash", "-c", script], timeout=30)
    assert done.returncode == 7  # and the other one was told to stop


def test_scripts_are_shell():
    launch = Path(resume.LOCAL).parent
    scripts = [*launch.glob("*.sh"), *launch.glob("*.sbatch")]
    assert len(scripts) == 3 and all(os.access(script, os.X_OK) for script in scripts)
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", *scripts], check=True)


def test_what_the_pod_script_sends_to_its_workers_is_shell(tmp_path):
    """As seen by a `gcloud` that only notes what it is asked for."""
    fake, notes = tmp_path / "gcloud", tmp_path / "notes"
    fake.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> {notes}\n')
    fake.chmod(0o755)
    names = dict(NAME="mctx", ZONE="here", TYPE="v5litepod-16", BUCKET="gs://bucket/a/folder")
    environment = os.environ | names | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    settings = ["--config=pico.py", "--config.lora.targets=('k', 'v')"]
    script = Path(resume.LOCAL).with_name("tpu_pod.sh")
    for action in (["create"], ["install"], ["run", *settings], ["fetch"], ["delete"]):
        subprocess.run([script, *action], env=environment, check=True)
    told = notes.read_text().split("\0")
    sent = [word.removeprefix("--command=") for word in told if word.startswith("--command=")]
    for command in sent:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    assert len(sent) == 2 and "--only-dir=a/folder bucket runs" in sent[1]
    # What a worker's shell makes of the last line is what was given here.
    line = sent[1].splitlines()[-1].partition("experiments.train")[2]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
    assert words.stdout.splitlines() == ["--workdir=runs", *settings]
