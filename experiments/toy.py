"""Every phase from nothing, at toy size, on two cores: the machinery, and nothing else.

A base trained for minutes gains nothing from context, so nothing about focus can be shown with
it; what can be shown is that each phase runs, saves, is found by the next, and ships.
"""

from __future__ import annotations

import shutil
import sysconfig
from importlib import import_module
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from data import corpus
from data.heldout import TEST
from experiments import ship, train

PHASES = ("base", "gist", "lens", "mof")
# Packages of the standard library: what is trained on, and what is looked at meanwhile.
TRAINING = ("asyncio", "concurrent", "email", "http", "importlib", "logging", "xml", "ctypes")
VALIDATION = ("multiprocessing", "unittest")


def config(phase: str, folder: Path) -> ConfigDict:
    """The pico config of a phase, small enough for two cores."""
    small = import_module(f"experiments.configs.pico_{phase}").get_config()
    small.update(dtype="float32", batch_size=4, eval_segments=8, corpus=str(folder))
    small.train.update(steps=30, warmup=5, log_every=5, save_every=0, eval_every=0)
    sections = {
        "base": dict(vocab_size=1024, d_model=64, n_layers=2, d_ff=128, head_dim=32, n_heads=2)
        | dict(n_kv_heads=1),
        "gist": dict(width=64, d_model=64, d_ff=128, n_layers=1, fanouts=(32, 4, 4))
        | dict(trained=3, slots=(8, 16, 16)),
        "lens": dict(d_model=32, d_ff=64, n_layers=1, finders=((1, 0),)),
    }
    if phase in sections:
        small[phase].update(sections[phase])
    if phase == "base":
        small.train.steps = 60
        small.batch_size = 2
    if phase in ("gist", "mof"):
        small.history = 1024
    if phase == "gist":
        small.mixture.levels = (0.4, 0.4, 0.2)
    if phase == "lens":
        small.update(near=1024, far=512, groups=1, reach=8192, questions=0.0)
    return train.over_defaults(small)


def make(workdir: Path, console: Console) -> Path:
    """Corpus, four phases, and the shipped form: returns the checkpoint. Goes on where it was."""
    checkpoint, folder = workdir / "checkpoint", workdir / "corpus"
    if (checkpoint / "0").exists():
        return checkpoint
    if not (folder / "code/train/manifest.json").exists():
        library = Path(sysconfig.get_path("stdlib"))
        for name in TRAINING + VALIDATION:
            copy, skip = workdir / "text" / name, shutil.ignore_patterns("test*", "__pycache__")
            shutil.copytree(library / name, copy, ignore=skip, dirs_exist_ok=True)
        corpus.build(
            folder,
            place=workdir / "text",
            held_out=[name for name in TEST if name != "python"],
            validation=VALIDATION,
            max_tokens=400_000,
            vocab_size=1024,
        )
    for phase in PHASES:
        console.print(f"training phase '{phase}' at toy size")
        train.run(config(phase, folder), workdir / "phases")
    ship.ship(workdir / "phases", folder, checkpoint, "this machine, toy size")
    return checkpoint
