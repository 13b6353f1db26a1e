"""What every entry point shares: errors as one sentence, config files, result files."""

import argparse
import ast
import difflib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from mctx.errors import UserError

PREFIX = "--config."
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UserErrors, for `run` to print."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


def run(main: Callable[[], Any]) -> NoReturn:
    """Runs an entry point and exits: 0, or 2 with one `error: …` line for what a user can mend."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> str:
    """What to type to run this again, for a result file; `arguments` None: those of this run."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join([*parser.prog.split(), *given])


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """The ConfigDict of `get_config()` in a Python file, with `overrides` applied.

    `FILE.py:CHOICE` calls `get_config(CHOICE)`: a file may hold several, of phases or of sizes.
    Raises UserError when there is no such file or no `get_config` in it; else as `override`.
    """
    name, colon, choice = str(path).rpartition(".py:")
    path = Path(f"{name}.py" if colon else path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}: see experiments/configs.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UserError(f"{path} is no config file: give a .py file that defines get_config().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is no config file: it must define get_config().")
    takes = inspect.signature(module.get_config).parameters
    if choice and colon and not takes:
        raise UserError(f"{path} holds one config: give it without ':{choice}'.")
    return override(module.get_config(*[choice] * bool(colon)), overrides)


def override(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """`config` with every `--config.key=value` applied; a value has the type of the default.

    Raises UserError for an unknown key (it names the nearest known ones), for a section given a
    value, and for a value of another type.
    """
    config = config.copy_and_resolve_references()
    known = dict(_leaves(config))
    for text in overrides:
        name, equals, value = text.removeprefix(PREFIX).partition("=")
        if not (text.startswith(PREFIX) and equals):
            raise UserError(f"cannot read '{text}': overrides look like {PREFIX}key=value.")
        if name not in known:
            raise UserError(f"the config has no key '{name}'{suggestion(name, known)}")
        section, _, key = name.rpartition(".")
        target = _section(config, section)
        target[key] = parse(name, value, target.get_type(key))
    return config


def parse(name: str, text: str, kind: type) -> Any:
    """`text` as a `kind`: bool, int, float, str or a tuple (`1,2` or `(1, 2)`), or None."""
    if text == "None":
        return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (tuple, list):
            value = ast.literal_eval(text)
            return kind(value) if isinstance(value, tuple | list) else kind([value])
        if kind is type(None):
            return _literal(text)
        return kind(text)
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UserError(f"{PREFIX}{name} wants a {kind.__name__}, not '{text}'.") from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _leaves(config: ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _section(config: ConfigDict, name: str) -> ConfigDict:
    for key in filter(None, name.split(".")):
        config = config[key]
    return config


def suggestion(name: str, known: Iterable[str]) -> str:
    """The keys that were probably meant: those of the section, the same last word, or near it."""
    inside = [key for key in known if key.startswith(f"{name}.")]
    same = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    meant = inside or same or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(meant[:4])}?" if meant else f"; keys: {', '.join(known)}."


def write_result(
    path: str | Path, command: str, seed: int, rows: Sequence[dict], **more: Any
) -> None:
    """Writes a result file, whole or not at all (design: law 9).

    Args:
      command: what remakes the numbers.
      rows: each with at least "what", "value" and "unit"; "low", "high" and "n" where there is a
        spread.
      more: further keys of the file.
    """
    result = {
        "command": command,
        "seed": seed,
        "commit": git_commit(),
        "machine": machine(),
        **more,
        "rows": list(rows),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def machine() -> dict[str, Any]:
    """What a number was measured on: processor, cores, accelerators, versions."""
    devices = jax.devices()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "processes": jax.process_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def git_commit() -> str:
    """The checkout's commit, with '+' behind it where files differ from it; 'unknown' elsewhere."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        changed = "+" if commit and git("status", "--porcelain", "--untracked-files=no") else ""
    except OSError:  # no git on this machine
        return "unknown"
    return commit + changed if commit else "unknown"
