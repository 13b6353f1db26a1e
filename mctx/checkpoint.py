"""Checkpoints: one Orbax item per thing, so each is restored alone and on any mesh (design: Scale).

    DIR/<step>/<item>      parameters of 'base', 'gistnet', 'lensnet', 'mof' or 'lora'
    DIR/<step>/train       optimizer state and step count of the item that was being trained
    DIR/<step>/config      JSON: {item: model config}
    WORKDIR/<phase>/       one such DIR for each training phase
"""

import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from mctx.errors import UserError

SCORE = "score"  # less is better
TRAINED_BY = {
    "base": "base",
    "gistnet": "gist",
    "lensnet": "lens",
    "mof": "mof",
    "lora": "lora",
}

HELD_BYTES = 2**26  # of a bundle that is written, held in memory at once
Place = Callable[[tuple[int, ...]], jax.sharding.Sharding]

# Orbax logs a page for every save and warns of what is normal here (an item read on its own).
logging.getLogger("absl").setLevel(logging.ERROR)


def manager(
    directory: str | epath.Path, keep: int | None = None, keep_best: int = 0
) -> ocp.CheckpointManager:
    """A manager that writes to `directory`, and deletes what need not be kept.

    Kept are the newest `keep` steps (None: all) and, of those saved with a score, the best
    `keep_best`. Every process of a job calls it.
    """
    directory = _absolute(directory)
    if directory.exists() and jax.process_index() == 0:
        for folder in _numbered(directory):
            if not any(folder.iterdir()):  # Orbax would count it as a step and refuse to write it
                folder.rmdir()
    if jax.process_count() > 1:  # none may look before that is done
        multihost_utils.sync_global_devices("checkpoint.manager")
    # Sorted with the worst first, as Orbax keeps the end of what it sorts.
    best = policies.BestN(
        get_metric_fn=_badness,
        reverse=True,
        n=keep_best,
        keep_checkpoints_without_metrics=False,
    )
    policy = policies.AnyPreservationPolicy([policies.LatestN(n=keep), best])
    options = ocp.CheckpointManagerOptions(
        best_fn=_badness if keep_best else None, best_mode="min", preservation_policy=policy
    )
    return ocp.CheckpointManager(directory, options=options)


def _badness(metrics: Mapping[str, float]) -> float:
    return metrics[SCORE]


def save(
    manager: ocp.CheckpointManager,
    step: int,
    item: str,
    params: Any,
    train: Any,
    config: dict,
    score: float | None = None,
) -> None:
    """Starts to write a step; it is durable after `manager.wait_until_finished()`.

    The arrays are copied to the host before this returns, and written by a thread. `score` tells
    which steps are best, the least is; a step without one, or with none that is finite, is kept
    for being new only.
    """
    items = {
        item: ocp.args.StandardSave(params),
        "train": ocp.args.StandardSave(train),
        "config": ocp.args.JsonSave(config),
    }
    told = score is not None and math.isfinite(score)  # NaN would be the best of all, and stay it
    metrics = {SCORE: score} if told else None
    manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


def restore_train_state(
    manager: ocp.CheckpointManager, step: int, item: str, params: Any, train: Any
) -> tuple[Any, Any]:
    """Restores (params, train) into the shapes, types and shardings of the given abstract trees.

    Raises UserError, which names the item, when one is damaged or of another shape.
    """
    found = {}
    for name, wanted in ((item, params), ("train", train)):
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(wanted)})
        folder = manager.directory / str(step)
        try:
            found[name] = manager.restore(step, args=args)[name]
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a misfit
            raise UserError(
                f"{folder / name} is truncated or cannot be resumed with this configuration: "
                f"train with the one it was written with, delete {folder} to go on from the step "
                f"before it, or use another directory ({_brief(error)})."
            ) from error
    return found[item], found["train"]


def latest_step(directory: str | epath.Path, item: str) -> int | None:
    """The newest finished step that holds `item`; None when there is none."""
    return max(_steps_with(_absolute(directory), item), default=None)


def holds(directory: str | epath.Path, item: str) -> bool:
    """Whether a checkpoint directory or a training workdir has a finished step of `item`."""
    return _newest(_folders(_absolute(directory)), item, "latest") is not None


def saved_with(directory: str | epath.Path, item: str) -> tuple[dict, int]:
    """The `config` that the newest step of an item was saved with, and when, in nanoseconds.

    `directory` as of `load_items`. Raises UserError where it has no finished step of the item.
    """
    step = _newest(_folders(_absolute(directory)), item, "latest")
    if step is None:
        raise UserError(f"{directory} holds no {item}: train phase '{TRAINED_BY[item]}' there.")
    return read_config(step.parent, int(step.name)), _written(step)


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
    place: Place | None = None,
) -> tuple[dict[str, Any], dict]:
    """Loads parameters for use: ({item: params}, config), on one device of this process.

    Args:
      directory: a checkpoint directory, or a training workdir with one for each phase; of several
        that hold an item, the one written last is read. Nothing but the wanted items is read.
      items: names out of TRAINED_BY.
      step: a step number, or 'latest'.
      dtype: type of the floating parameters returned, whatever type they were stored in; or a
        type for each of some items, where the others get float32.
      place: where each array is to lie, by its shape: it is read straight into its shards, never
        whole into one place. All processes must ask together.

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
            steps = sorted({n for folder in folders for n in _steps_with(folder, item)})
            if steps:
                raise UserError(
                    f"{root} holds no {item} at step {step}, only at {', '.join(map(str, steps))}: "
                    "name one of these, or latest."
                )
            mend = f"train it with phase '{phase}'" if phase else f"items are {list(TRAINED_BY)}"
            raise UserError(f"{root} holds no {item}, only {', '.join(present)}: {mend}.")
    types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(items, dtype)
    params = {
        item: _load(path / item, types.get(item, jnp.float32), place)
        for item, path in where.items()
    }
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
    draft = directory / ".draft"  # what starts so is no folder of a phase
    if draft.exists():
        shutil.rmtree(draft)
    content = {
        # Orbax holds back what it writes until a file is full.
        name: ocp.args.PyTreeSave(_cast(tree, dtype), ocdbt_target_data_file_size=HELD_BYTES)
        for name, tree in items.items()
    }
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
    """Rewrites an item's OCDBT store in few transactions: hardly a dead node, no folders of
    processes. A transaction is held in memory, so a large item takes several."""
    source = _store(item)
    packed = item.parent / f"{item.name}-packed"
    target = _store(packed)
    keys = deque(source.list().result())
    while keys:
        room = HELD_BYTES
        with ts.Transaction(atomic=True) as transaction:
            while keys and room > 0:
                value = source[keys[0]]
                target.with_transaction(transaction)[keys.popleft()] = value
                room -= len(value)
    for folder in (item / "d", *item.glob("ocdbt.process_*"), *item.glob("array_metadatas")):
        shutil.rmtree(folder)
    (item / "_sharding").unlink(missing_ok=True)  # names the devices of the machine that wrote it
    (packed / "d").rename(item / "d")
    (packed / "manifest.ocdbt").replace(item / "manifest.ocdbt")
    shutil.rmtree(packed)


def _store(folder: epath.Path) -> ts.KvStore:
    base = {"driver": "file", "path": f"{folder}/"}  # a URL would give some characters a meaning
    return ts.KvStore.open({"driver": "ocdbt", "base": base}).result()


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in `dtype`, the others as they are; nothing is copied that fits already."""

    def cast(leaf):
        if isinstance(leaf, jax.Array):  # Orbax writes it from where it lies, NumPy's from a copy
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype, copy=False) if floating else leaf

    return jax.tree.map(cast, tree)


def _load(path: epath.Path, dtype: Any, place: Place | None = None) -> Any:
    """One item, restored from its own metadata: as `place` says, or onto the first device here."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(saved):
        floating = jnp.issubdtype(saved.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(
            saved.shape,
            dtype if floating else saved.dtype,
            sharding=place(saved.shape) if place else device,
        )

    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = jax.tree.map(abstract, reader.metadata(path).item_metadata.tree)
            return reader.restore(path, args=ocp.args.StandardRestore(tree))
    except Exception as error:  # Orbax and TensorStore raise a dozen types for a damaged file
        raise UserError(
            f"{path} is truncated or was not written as a '{path.name}' item: copy or train it "
            "again."
        ) from error


def _folders(root: epath.Path) -> list[epath.Path]:
    """Where steps may lie: in `root` itself, or in a folder a phase."""
    inside = root.iterdir() if root.is_dir() else ()
    parts = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    return [root, *parts] if root.is_dir() else []


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
    path = step / "_CHECKPOINT_METADATA"
    try:
        return json.loads(path.read_text())["commit_timestamp_nsecs"] or 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is truncated or was not written with a checkpoint: copy or train {step} "
            "again, or delete it."
        ) from error


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
