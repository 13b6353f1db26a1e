"""Trains one phase.

    python -m experiments.train --config=FILE --workdir=DIR [--config.key=value …]

Phases in order: base, gist, lens, mof; after gist, if it is wanted, lora, which the phases after
it apply with `--config.with_lora=True`. Each writes DIR/<phase>, finds what was trained before it
in DIR (or in `--config.init`, a checkpoint), and goes on from its own latest step. `config.corpus`
is a folder of domains (`python -m data.corpus`), `config.domains` their weights: one that is not
there needs `--config.domains.NAME=0`. A folder of one domain needs no weights. Where
`config.questions` of phase lens is not 0, it wants questions in that folder, too (`python -m
data.questions`).
`config.json` beside a phase's metrics has all the settings that it was last trained with.

Every process of a job runs this command (experiments/launch, docs/scale.md); with
`--config.devices=N` it refuses to run on another number of devices. SIGTERM saves and exits 0 (or
with MCTX_STOPPED_STATUS); the same command goes on, on any number of devices and processes.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict, config_dict

from data.mixture import Mixture, domains_of
from data.questions import Questions
from data.sampling import Corpus
from experiments import entry, processes
from mctx import checkpoint, sharding
from mctx.errors import UserError
from mctx.models.lora import tuned
from mctx.opened import DTYPES
from mctx.tokenizer import Tokenizer
from mctx.training.loop import Preempted, TrainSettings, train
from mctx.training.sources import Sources

CONFIG_FILE = "config.json"  # of a phase's folder
PHASES = ("base", "gist", "lens", "mof", "lora")
OWN = {phase: (phase,) for phase in PHASES} | {"gist": ("gist", "window")}  # sections it settles
PARTS = ("base", "gist", "lens")  # of the model: sections that a config of any phase may have
AFTER_LORA = ("lens", "mof")


def defaults() -> dict:
    """Every setting that a config need not give; anew, for a placeholder keeps what it is given."""
    return {
        "init": config_dict.placeholder(str),
        "devices": config_dict.placeholder(int),  # expected, of all processes
        "base_dtype": "float32",  # in which a frozen base is held
        "with_lora": False,  # train on the base as the `lora` item has it
        "remat": False,  # compute the base's layers again for the backward pass
        "train": asdict(TrainSettings(steps=0, learning_rate=0.0)),
    }


def over_defaults(given: ConfigDict) -> ConfigDict:
    """Every setting that there is; those of `given` as it has them."""
    config = ConfigDict(defaults())
    config.update(given)
    return config


def configuration(path: Path, overrides: list[str]) -> ConfigDict:
    """The config file over the defaults, so that every setting can be overridden; then checked."""
    config = entry.override(over_defaults(entry.load_config(path)), overrides)
    if config.phase not in PHASES:
        raise UserError(f"there is no phase '{config.phase}': use one of {', '.join(PHASES)}.")
    check_known(config, path)
    for name in ("dtype", "base_dtype"):
        if config.get(name, "float32") not in DTYPES:
            raise UserError(f"{name} must be one of {', '.join(DTYPES)}, not '{config[name]}'.")
    if config.init and config.phase == "base":
        raise UserError("phase base begins from nothing: leave --config.init out.")
    if config.with_lora and config.phase not in AFTER_LORA:
        raise UserError(
            f"phase {config.phase} cannot be trained on a LoRA: leave --config.with_lora out; "
            f"phases {' and '.join(AFTER_LORA)} can."
        )
    if config.corpus is None:
        raise UserError("no corpus: give --config.corpus=DIR, made with `python -m data.corpus`.")
    return config


def check_known(config: ConfigDict, path: Path) -> None:
    """Raises UserError for a setting of no part of the model that the phase would not read."""
    pico = entry.load_config(Path(__file__).parent / "configs" / f"pico_{config.phase}.py")
    whole = over_defaults(pico)  # pico's config of a phase has all that there is
    known = {*whole, *PARTS, *(f"train.{name}" for name in whole.train)}
    for name in (*config, *(f"train.{name}" for name in config.train)):
        if name not in known:
            meant = entry.suggestion(name, sorted(known))
            raise UserError(f"{path} sets {name}, which phase {config.phase} does not have{meant}")


def load_trained(
    items: tuple[str, ...], workdir: Path, init: str | None, **how
) -> tuple[dict, dict]:
    """Items trained before: those of `workdir`, and the others of the checkpoint `init`.

    `how`: see `checkpoint.load_items`.
    """
    own = tuple(item for item in items if init is None or checkpoint.holds(workdir, item))
    rest = tuple(item for item in items if item not in own)
    given, given_config = checkpoint.load_items(init, rest, **how) if rest else ({}, {})
    found, found_config = checkpoint.load_items(workdir, own, **how) if own else ({}, {})
    return given | found, given_config | found_config


def load_tuned(items: tuple[str, ...], config: ConfigDict, workdir: Path) -> tuple[dict, dict]:
    """As `load_trained`, onto the mesh, with the LoRA applied if the config says so."""
    items += ("lora",) * config.with_lora
    params, trained = load_trained(items, workdir, config.init, **on_mesh(config))
    return tuned(params), trained


def on_mesh(config: ConfigDict) -> dict:
    """How items are loaded for training: each array straight into its shards on the mesh."""
    sizes = config.train
    mesh = sharding.mesh(sizes.data, sizes.fsdp, sizes.head)

    def place(shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, sharding.shard_large(shape, mesh))

    return {"place": place, "dtype": {"base": jnp.dtype(config.base_dtype)}}


def open_mixture(config: ConfigDict, part: str) -> Mixture:
    """The `train` or `valid` parts of the corpus that have a weight in the config.

    Raises UserError where a domain with a weight is not there, or none has a validation part.
    """
    places = domains_of(config.corpus)
    given = dict(config.get("domains") or {})
    weights = given if given and len(places) > 1 else dict.fromkeys(places, 1.0)
    if part == "valid":  # tasks have none
        weights = {n: weights.get(n, 0) for n, place in places.items() if (place / part).is_dir()}
        if not any(weights.values()):
            raise UserError(f"no domain of {config.corpus} with a weight has a validation part.")
    used = [name for name in places if weights.get(name)]
    return Mixture.of({name: Corpus.load(places[name] / part) for name in used}, weights)


def open_questions(config: ConfigDict, part: str, learn: Mixture) -> Callable | None:
    """`Questions.draw` of those beside the corpus's domains; None where the config asks for none.

    Raises UserError where there are none, or they have another tokenizer than the corpus.
    """
    if not config.get("questions"):
        return None
    found = Questions.load(Path(config.corpus) / "questions" / part)
    known = {corpus.manifest.get("tokenizer") for corpus in learn.corpora}
    if found.manifest["tokenizer"] not in known:
        raise UserError(f"the questions of {config.corpus} have another tokenizer: make them with "
                        "the corpus's own.")
    return found.draw


def open_sources(config: ConfigDict, workdir: Path) -> Sources:
    learn, held_out = open_mixture(config, "train"), open_mixture(config, "valid").even()
    return Sources(
        load=partial(load_tuned, config=config, workdir=workdir),
        windows=learn.windows,
        segments=learn.segments,
        histories=learn.histories,
        held_out=held_out.segments,
        held_histories=held_out.histories,
        domains=held_out.names,
        questions=open_questions(config, "train", learn),
        held_questions=open_questions(config, "valid", learn),
    )


def save_config(config: ConfigDict, directory: Path) -> None:
    """Writes all settings, as JSON, for `python -m experiments.ablations` and for people."""
    settings = json.dumps(config.copy_and_resolve_references().to_dict(), indent=1)
    (directory / CONFIG_FILE).write_text(settings + "\n", encoding="utf-8")


def check_used(config: ConfigDict, overrides: Sequence[str], used: dict) -> None:
    """Raises UserError where an override asks for what a part trained before has settled: `used`,
    the model configs of all parts."""
    for text in overrides:
        name = text.removeprefix(entry.PREFIX).partition("=")[0]
        part, *keys = name.split(".")
        if part in OWN[config.phase] or part not in used:
            continue
        asked, settled = config[part], used[part]
        for key in keys:
            asked, settled = asked[key], settled[key]
        if json.dumps(settled) != json.dumps(asked):  # of which a list is a tuple
            raise UserError(
                f"{name} is {settled} in the parts trained before and cannot become {asked}: leave "
                f"{entry.PREFIX}{name} out, or train those parts anew."
            )


def run(config: ConfigDict, workdir: Path, overrides: Sequence[str] = ()) -> None:
    """Trains the phase that a checked config describes, from its latest step in `workdir`."""
    sources = open_sources(config, workdir)
    phase = importlib.import_module(f"mctx.training.{config.phase}").phase(config, sources)
    check_used(config, overrides, phase.config)
    tokenizer = Tokenizer.load(next(iter(domains_of(config.corpus).values())) / "train")

    def begins(directory):
        tokenizer.save(directory)
        save_config(config, directory)

    train(phase, TrainSettings(**config.train), workdir, begins)


def main() -> None:
    parser = entry.Parser(prog="python -m experiments.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a file of experiments/configs")
    parser.add_argument("--workdir", type=Path, required=True, help="where checkpoints go")
    arguments, overrides = parser.parse_known_args()
    config = configuration(arguments.config, overrides)
    entry.check_folder(arguments.workdir / config.phase)
    stopped = processes.stopped_status()
    processes.join()
    processes.check_devices(config.devices)
    try:
        run(config, arguments.workdir, overrides)
    except Preempted:
        raise SystemExit(stopped) from None


if __name__ == "__main__":
    entry.run(main)
