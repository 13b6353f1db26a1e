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
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from mctx.errors import Parser as Parser  # of every entry point
from mctx.errors import UserError

PREFIX = "--config."
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


def run(main: Callable[[], Any]) -> NoReturn:
    """Runs an entry point and exits: 0, or 2 with one `error: …` line for what a user can mend.

    That is a UserError, or a file or folder that the system does not let be read or written.
    """
    try:
        main()
    except UserError as error:
        _refuse(error)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(_unusable(error.filename, error))
    sys.exit(0)


def _refuse(error: UserError) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def _unusable(path: Any, error: OSError) -> UserError:
    reason = error.strerror or type(error).__name__
    return UserError(
        f"{path} cannot be written or read ({reason}): name another path, or mend this one."
    )


def check_folder(path: str | Path) -> None:
    """Raises UserError where no folder `path` can be made or written to; makes nothing.

    For what is written after long work: asked before it.
    """
    path = Path(path).absolute()
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            raise UserError(f"{there} is a file, where a folder is needed: name another path.")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unusable(path, error) from error


def check_file(path: str | Path) -> None:
    """Raises UserError where no file `path` can be written, as `check_folder` does."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: name a file.")
    check_folder(Path(path).parent)


def command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> str:
    """What to type to run this again, for a result file; `arguments` None: those of this run."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join([*parser.prog.split(), *given])


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """The ConfigDict of `get_config()` in a Python file, with `overrides` applied.

    `FILE.py:CHOICE` calls `get_config(CHOICE)`: a file may hold several, of phases or of sizes.
    Raises UserError when there is no such file or no `get_config` in it, or it fails; else as
    `override`.
    """
    name, colon, choice = str(path).rpartition(".py:")
    path = Path(f"{name}.py" if colon else path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}: see experiments/configs.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UserError(f"{path} is no config file: give a .py file that defines get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file's own code raises
        raise _config_fault(path, spec.origin, error) from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is no config file: it must define get_config().")
    takes = inspect.signature(module.get_config).parameters
    if choice and colon and not takes:
        raise UserError(f"{path} holds one config: give it without ':{choice}'.")
    try:
        config = module.get_config(*[choice] * bool(colon))
    except UserError:
        raise
    except Exception as error:
        raise _config_fault(path, spec.origin, error) from error
    return override(config, overrides)


def _config_fault(path: Path, origin: str, error: Exception) -> UserError:
    """What went wrong in a config file, and in which of its lines."""
    if isinstance(error, SyntaxError) and error.filename == origin:
        line, says = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == origin), 1)
        says = f"{type(error).__name__}: {error}"
    return UserError(f"{path}, line {line}: mend the config file ({says}).")


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
        article = "an" if kind is int else "a"
        raise UserError(
            f"{PREFIX}{name} wants {article} {kind.__name__}, not '{text}'."
        ) from error


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

    Raises UserError where it cannot be written; `check_file` tells before the work.

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
    check_file(path)
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
