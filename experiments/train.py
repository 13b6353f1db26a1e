"""Trains one phase.

    python -m experiments.train --config=FILE --workdir=DIR [--config.key=value …]

Phases in order: base, gist, lens, mof. Each writes DIR/<phase>, finds what was trained before it
in DIR (or in `--config.init`, a checkpoint), and goes on from its own latest step.
"""

import importlib
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from data import sampling
from experiments import entry
from mctx import checkpoint
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from mctx.training.loop import TrainSettings, train
from mctx.training.sources import Sources

PHASES = ("base", "gist", "lens", "mof")
DEFAULTS = {
    "init": config_dict.placeholder(str),
    "train": asdict(TrainSettings(steps=0, learning_rate=0.0)),
}


def configuration(path: Path, overrides: list[str]) -> ConfigDict:
    """The config file over the defaults, so that every setting can be overridden; then checked."""
    config = ConfigDict(DEFAULTS)
    config.update(entry.load_config(path))
    config = entry.override(config, overrides)
    unknown = sorted(set(config.train) - set(DEFAULTS["train"]))
    if unknown:
        settings = ", ".join(DEFAULTS["train"])
        raise UserError(f"{path} sets train.{unknown[0]}, but there are only {settings}.")
    if config.phase not in PHASES:
        raise UserError(f"there is no phase '{config.phase}': use one of {', '.join(PHASES)}.")
    if config.corpus is None:
        raise UserError("no corpus: give --config.corpus=DIR, made with `python -m data.corpus`.")
    return config


def load_trained(items: tuple[str, ...], workdir: Path, init: str | None) -> tuple[dict, dict]:
    """Items trained before: those of `workdir`, and the others of the checkpoint `init`."""
    own = tuple(item for item in items if init is None or checkpoint.holds(workdir, item))
    rest = tuple(item for item in items if item not in own)
    given, given_config = checkpoint.load_items(init, rest) if rest else ({}, {})
    found, found_config = checkpoint.load_items(workdir, own) if own else ({}, {})
    return given | found, given_config | found_config


def open_sources(config: ConfigDict, workdir: Path) -> Sources:
    corpora = [sampling.Corpus.load(Path(config.corpus) / name) for name in ("train", "valid")]
    learn, held_out = corpora
    return Sources(
        load=partial(load_trained, workdir=workdir, init=config.init),
        windows=partial(sampling.windows, learn),
        segments=partial(sampling.segments, learn),
        histories=partial(sampling.histories, learn),
        held_out=partial(sampling.segments, held_out),
        held_histories=partial(sampling.histories, held_out),
    )


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains the phase that a checked config describes, from its latest step in `workdir`."""
    sources = open_sources(config, workdir)
    phase = importlib.import_module(f"mctx.training.{config.phase}").phase(config, sources)
    tokenizer = Tokenizer.load(Path(config.corpus) / "train")
    (workdir / phase.name).mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir / phase.name)
    train(phase, TrainSettings(**config.train), workdir)


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a file of experiments/configs")
    parser.add_argument("--workdir", type=Path, required=True, help="where checkpoints go")
    arguments, overrides = parser.parse_known_args()
    run(configuration(arguments.config, overrides), arguments.workdir)


if __name__ == "__main__":
    entry.run(main)
