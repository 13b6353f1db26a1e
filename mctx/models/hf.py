"""Hugging Face checkpoints, in and out, through one table of names (design: Base model).

A checkpoint is a folder: config.json beside model.safetensors, or beside several such files and
model.safetensors.index.json. Tensors are read one by one, straight into the shards they are for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mctx.errors import UserError
from mctx.models.base import Base, BaseConfig
from mctx.models.hf_config import read_config, write_config

Place = Callable[[tuple[int, ...]], jax.sharding.Sharding]


class Rule(NamedTuple):
    """How one layer's parameter lies in their file: a Linear there is [out, in], two axes only."""

    write: Callable[[Any], Any]
    read: Callable[[Any, tuple[int, ...]], Any]


AS_IS = Rule(lambda x: x, lambda w, shape: w)
FLAT = Rule(lambda x: x.reshape(-1), lambda w, shape: w.reshape(shape))
FROM_ONE = Rule(lambda x: x.reshape(x.shape[0], -1).T, lambda w, shape: w.T.reshape(shape))
TO_ONE = Rule(lambda x: x.reshape(-1, x.shape[-1]).T, lambda w, shape: w.T.reshape(shape))

# Our path -> (their name, rule). A name with {} is one tensor a layer, ours is their stack.
NAMES = {
    "embed/embedding": ("model.embed_tokens.weight", AS_IS),  # [V, D]
    "final_norm/scale": ("model.norm.weight", AS_IS),  # [D]
    "head": ("lm_head.weight", FROM_ONE),  # [D, V]
} | {
    f"layers/{path}": (f"model.layers.{{}}.{name}", rule)
    for path, name, rule in (
        ("attn_norm/scale", "input_layernorm.weight", AS_IS),  # [D]
        ("attn/q/kernel", "self_attn.q_proj.weight", FROM_ONE),  # [D, N, H]
        ("attn/k/kernel", "self_attn.k_proj.weight", FROM_ONE),  # [D, K, H]
        ("attn/v/kernel", "self_attn.v_proj.weight", FROM_ONE),
        ("attn/q/bias", "self_attn.q_proj.bias", FLAT),  # [N, H]
        ("attn/k/bias", "self_attn.k_proj.bias", FLAT),  # [K, H]
        ("attn/v/bias", "self_attn.v_proj.bias", FLAT),
        ("attn/q_norm/scale", "self_attn.q_norm.weight", AS_IS),  # [H]
        ("attn/k_norm/scale", "self_attn.k_norm.weight", AS_IS),
        ("attn/o/kernel", "self_attn.o_proj.weight", TO_ONE),  # [N, H, D]
        ("mlp_norm/scale", "post_attention_layernorm.weight", AS_IS),
        ("mlp/gate/kernel", "mlp.gate_proj.weight", FROM_ONE),  # [D, F]
        ("mlp/up/kernel", "mlp.up_proj.weight", FROM_ONE),
        ("mlp/down/kernel", "mlp.down_proj.weight", FROM_ONE),  # [F, D]
    )
}
# In some files beside the parameters: buffers, and a copy of the embedding where it is tied.
NOT_PARAMETERS = ("rotary_emb.inv_freq", "lm_head.weight")


def abstract_params(config: BaseConfig) -> dict:
    """The decoder's parameter tree as `jax.ShapeDtypeStruct`s: nothing is computed."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Base(config).init, jax.random.key(0), ids, ids)["params"]


def load(
    directory: str | Path, dtype: Any = None, place: Place | None = None
) -> tuple[BaseConfig, dict]:
    """Reads a checkpoint tensor by tensor: no more is held than what is returned, and one tensor.

    Args:
      directory: holds config.json and the safetensors.
      dtype: of the parameters; None keeps the stored one.
      place: where each parameter is to lie, by its shape; this process keeps its own shards only.

    Returns:
      The config, and the parameter tree of `Base`: NumPy arrays, or arrays that lie as `place`
      says.

    Raises:
      UserError: an unsupported config, or files that do not hold exactly its parameters.
    """
    directory = Path(directory)
    config = read_config(directory)
    shapes = {path: leaf.shape for path, leaf in _flat(abstract_params(config)).items()}
    files = _index(directory)
    wanted = {name for path, shape in shapes.items() for name in _names(path, shape)}
    missing = sorted(wanted - files.keys())
    unknown = sorted(n for n in files.keys() - wanted if not n.endswith(NOT_PARAMETERS))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"also holds {unknown[0]}"
        raise UserError(f"{directory} {what}: its weights are not those of its config.json.")
    flat = {path: _read(files, path, shape, dtype, place) for path, shape in shapes.items()}
    return config, unflatten_dict(flat, sep="/")


def _flat(params: dict) -> dict:
    return flatten_dict(params, sep="/")


def _names(path: str, shape: tuple[int, ...]) -> list[str]:
    """Their tensors that make up one of our parameters, in order."""
    name, _ = NAMES[path]
    return [name.format(layer) for layer in range(shape[0])] if "{}" in name else [name]


def _index(directory: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it; nothing is read but the headers."""
    index = directory / "model.safetensors.index.json"
    found = {}
    try:
        files = {"model.safetensors"}
        if index.exists():
            files = set(json.loads(index.read_text())["weight_map"].values())
        for file in sorted(files):
            with safe_open(directory / file, framework="numpy") as handle:
                found |= dict.fromkeys(handle.keys(), directory / file)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{directory} has no whole set of safetensors: download or convert it again ({error})."
        ) from error
    return found


def _tensor(files: dict[str, Path], name: str) -> np.ndarray:
    # Opened anew for each: a file that stays open keeps all that was read of it in memory.
    with safe_open(files[name], framework="numpy") as handle:
        return handle.get_tensor(name)


def _read(files: dict, path: str, shape: tuple[int, ...], dtype: Any, place: Place | None) -> Any:
    """One of our parameters, stacked over layers where it has them; whole, or in its shards."""
    if place is None:
        whole = tuple(slice(0, size) for size in shape)
        return _read_parts(files, path, shape, dtype, [whole])[0]
    sharding = place(shape)
    indices = list(sharding.addressable_devices_indices_map(shape).values())
    distinct = list(dict.fromkeys(_bounds(index, shape) for index in indices))
    slices = [tuple(slice(*one) for one in bounds) for bounds in distinct]
    parts = dict(zip(distinct, _read_parts(files, path, shape, dtype, slices), strict=True))
    return jax.make_array_from_callback(shape, sharding, lambda at: parts[_bounds(at, shape)])


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))


def _read_parts(files: dict, path: str, shape, dtype: Any, parts: list[tuple[slice, ...]]) -> list:
    """The wanted parts of one of our parameters; every tensor of theirs is read once."""
    names, (_, rule) = _names(path, shape), NAMES[path]
    stacked = path.startswith("layers/")
    one = shape[1:] if stacked else shape
    theirs = jax.eval_shape(rule.write, jax.ShapeDtypeStruct(one, jnp.float32)).shape
    out = None
    for layer, name in enumerate(names):
        tensor = _tensor(files, name)
        if tensor.shape != theirs:
            raise UserError(
                f"{name} is {tensor.shape} where its config.json makes it {theirs}: "
                "the files are of two checkpoints."
            )
        if out is None:
            sizes = [[at.stop - at.start for at in part] for part in parts]
            out = [np.empty(size, dtype or tensor.dtype) for size in sizes]
        ours = rule.read(tensor, one)
        for part, own in zip(parts, out, strict=True):
            if not stacked:
                own[...] = ours[part]
            elif part[0].start <= layer < part[0].stop:
                own[layer - part[0].start] = ours[part[1:]]
    return out


def save(
    directory: str | Path,
    config: BaseConfig,
    params: dict,
    family: str | None = None,
    eos: int | None = None,
) -> None:
    """Writes config.json and model.safetensors, which stock Transformers loads.

    Args:
      directory: made if it is not there.
      config, params: of `Base`; the parameters keep their dtype.
      family: a `model_type`; None for the first that can express the config.
      eos: the token that ends a text, where one is known.

    Raises:
      UserError: no such family can express the config.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, leaf in _flat(params).items():
        leaf, rule = np.asarray(leaf), NAMES[path][1]
        layers = leaf if path.startswith("layers/") else leaf[None]
        for name, one in zip(_names(path, leaf.shape), layers, strict=True):
            tensors[name] = np.ascontiguousarray(rule.write(one))
    dtype = tensors["model.norm.weight"].dtype.name
    write_config(directory, config, family, {"eos_token_id": eos, "torch_dtype": dtype})
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
