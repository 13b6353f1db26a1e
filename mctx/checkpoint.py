"""Checkpoints: one Orbax item per thing, so each is restored alone and on any mesh (design: Scale).

    DIR/<step>/<item>      parameters of 'base', 'gistnet', 'lensnet' or 'mof'
    DIR/<step>/train       optimizer state and step count of the item that was being trained
    DIR/<step>/config      JSON: {item: model config}
    WORKDIR/<phase>/       one such DIR for each training phase
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from mctx.errors import UserError

TRAINED_BY = {"base": "base", "gistnet": "gist", "lensnet": "lens", "mof": "mof"}

# Orbax logs a page for every save and warns of what is normal here (an item read on its own).
logging.getLogger("absl").setLevel(logging.ERROR)


def manager(directory: str | epath.Path, keep: int | None = None) -> ocp.CheckpointManager:
    """A manager that writes to `directory` and keeps the newest `keep` steps (None: all)."""
    directory = _absolute(directory)
    if directory.exists() and jax.process_index() == 0:
        for folder in _numbered(directory):
            if not any(folder.iterdir()):  # Orbax would count it as a step and refuse to write it
                folder.rmdir()
    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep))


def save(
    manager: ocp.CheckpointManager, step: int, item: str, params: Any, train: Any, config: dict
) -> None:
    """Starts to write a step; it is durable after `manager.wait_until_finished()`."""
    items = {
        item: ocp.args.StandardSave(params),
        "train": ocp.args.StandardSave(train),
        "config": ocp.args.JsonSave(config),
    }
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def restore_train_state(
    manager: ocp.CheckpointManager, step: int, item: str, params: Any, train: Any
) -> tuple[Any, Any]:
    """Restores (params, train) into the shapes, types and shardings of the given abstract trees."""
    wanted = {item: ocp.args.StandardRestore(params), "train": ocp.args.StandardRestore(train)}
    try:
        found = manager.restore(step, args=ocp.args.Composite(**wanted))
    except Exception as error:  # Orbax and TensorStore raise a dozen types for a misfit
        raise UserError(
            f"{manager.directory / str(step)} cannot be resumed with this configuration: train "
            f"with the one it was written with, or into another directory ({_brief(error)})."
        ) from error
    return found[item], found["train"]


def latest_step(directory: str | epath.Path, item: str) -> int | None:
    """The newest finished step that holds `item`; None when there is none."""
    return max(_steps_with(_absolute(directory), item), default=None)


def holds(directory: str | epath.Path, item: str) -> bool:
    """Whether a checkpoint directory or a training workdir has a finished step of `item`."""
    return _newest(_folders(_absolute(directory)), item, "latest") is not None


def read_config(directory: str | epath.Path, step: int) -> dict:
    """The `config` item of one step."""
    path = _absolute(directory) / str(step) / "config" / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.parent} is not a readable config item: copy or train the checkpoint again."
        ) from error


def load_items(
    directory: str | epath.Path,
    items: tuple[str, ...],
    step: int | str = "latest",
    dtype: Any = jnp.float32,
) -> tuple[dict[str, Any], dict]:
    """Loads parameters for use: ({item: params}, config), on one device of this process.

    Args:
      directory: a checkpoint directory, or a training workdir with one for each phase; of several
        that hold an item, the one written last is read. Nothing but the wanted items is read.
      items: names out of TRAINED_BY.
      step: a step number, or 'latest'.
      dtype: type of the floating parameters returned, whatever type they were stored in.

    Raises:
      UserError: no such directory, no checkpoint in it, an item missing or not readable.
    """
    root = _absolute(directory)
    folders = _folders(root)
    if not folders:
        raise UserError(
            f"there is no directory {root}: give a checkpoint directory or a training workdir."
        )
    present = sorted({name for folder in folders for name in _items_in(folder)})
    if not present:
        raise UserError(f"{root} holds no finished checkpoint: train one, or give another folder.")

    where = {item: _newest(folders, item, step) for item in items}
    for item in items:
        if where[item] is None:
            phase = TRAINED_BY.get(item)
            at = "" if step == "latest" else f" at step {step}"
            mend = f"train it with phase '{phase}'" if phase else f"items are {list(TRAINED_BY)}"
            raise UserError(f"{root} holds no {item}{at}, only {', '.join(present)}: {mend}.")
    params = {item: _load(path / item, dtype) for item, path in where.items()}
    config = {}
    for path in sorted(set(where.values()), key=_written):  # what was written last is right
        config |= read_config(path.parent, int(path.name))
    return params, config


def save_bundle(
    directory: str | epath.Path,
    items: Mapping[str, Any],
    config: dict,
    extra_files: Mapping[str, bytes],
    dtype: Any = jnp.bfloat16,
) -> None:
    """Writes the form that is shipped: step 0 alone, floats in `dtype`, few files, zstd.

    `extra_files` (name → content) go beside the step: tokenizer.json, CARD.md. The step appears
    whole or not at all. Raises UserError when `directory` already holds a checkpoint.
    """
    directory = _absolute(directory)
    if (directory / "0").exists():
        raise UserError(f"{directory} already holds a checkpoint: choose another directory.")
    draft = directory / "draft"
    if draft.exists():
        shutil.rmtree(draft)
    content = {name: ocp.args.StandardSave(_cast(tree, dtype)) for name, tree in items.items()}
    with ocp.CheckpointManager(draft) as writer:
        writer.save(0, args=ocp.args.Composite(config=ocp.args.JsonSave(config), **content))
    step = draft / "0"
    for name in items:
        _compact(step / name)
    # These markers, which local disks do not need, name the folders of the machine that wrote them.
    for written in (step, *(step / name for name in ("config", *items))):
        (written / "commit_success.txt").unlink(missing_ok=True)
    for name, data in extra_files.items():
        (directory / name).write_bytes(data)
    step.rename(directory / "0")
    shutil.rmtree(draft)


def _compact(item: epath.Path) -> None:
    """Rewrites an item's OCDBT store in one transaction: no dead nodes, no per-process folders."""
    source = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    packed = item.parent / f"{item.name}-packed"
    target = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{packed}/"}).result()
    keys = source.list().result()
    with ts.Transaction(atomic=True) as transaction:
        for key in keys:
            target.with_transaction(transaction)[key] = source[key]
    for folder in (item / "d", *item.glob("ocdbt.process_*")):
        shutil.rmtree(folder)
    (packed / "d").rename(item / "d")
    (packed / "manifest.ocdbt").replace(item / "manifest.ocdbt")
    shutil.rmtree(packed)


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in `dtype`, the others as they are; all on the host."""

    def cast(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _load(path: epath.Path, dtype: Any) -> Any:
    """One item, restored onto this process's first device from its own metadata."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(saved):
        floating = jnp.issubdtype(saved.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(
            saved.shape, dtype if floating else saved.dtype, sharding=device
        )

    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = jax.tree.map(abstract, reader.metadata(path).item_metadata.tree)
            return reader.restore(path, args=ocp.args.StandardRestore(tree))
    except Exception as error:  # Orbax and TensorStore raise a dozen types for a damaged file
        raise UserError(
            f"{path} is truncated or was not written as a '{path.name}' item: copy or train it "
            f"again ({_brief(error)})."
        ) from error


def _folders(root: epath.Path) -> list[epath.Path]:
    """Where steps may lie: in `root` itself, or in a folder a phase."""
    return [root, *(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []


def _newest(folders: list[epath.Path], item: str, step: int | str) -> epath.Path | None:
    """The step folder with the newest `item`: highest step in each folder, then last written."""
    candidates = []
    for folder in folders:
        steps = [n for n in _steps_with(folder, item) if step in ("latest", n)]
        if steps:
            path = folder / str(max(steps))
            candidates.append((_written(path), path))
    return max(candidates, default=(0, None))[1]


def _written(step: epath.Path) -> int:
    return json.loads((step / "_CHECKPOINT_METADATA").read_text())["commit_timestamp_nsecs"] or 0


def _steps_with(directory: epath.Path, item: str) -> Iterator[int]:
    return (int(folder.name) for folder in _finished(directory) if (folder / item).is_dir())


def _items_in(directory: epath.Path) -> Iterator[str]:
    for folder in _finished(directory):
        yield from (child.name for child in folder.iterdir() if child.name in TRAINED_BY)


def _finished(directory: epath.Path) -> Iterator[epath.Path]:
    # An unfinished step has another name, but an empty folder with a step's name is none either.
    return (path for path in _numbered(directory) if (path / "_CHECKPOINT_METADATA").exists())


def _numbered(directory: epath.Path) -> list[epath.Path]:
    folders = directory.iterdir() if directory.is_dir() else ()
    return [folder for folder in folders if folder.name.isdigit()]


def _absolute(directory: str | epath.Path) -> epath.Path:
    return epath.Path(directory).expanduser().resolve()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
