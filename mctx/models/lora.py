"""LoRA on the frozen base: a low-rank term beside its projections, in a parameter tree of its own.

`x W` becomes `x W + (x A) B`. The tree is stacked over layers like the base's and is grafted onto
it where it is wanted; the base's own leaves stay the very same arrays. B starts at zero, so that
a fresh LoRA is exactly the base. (Hu et al. 2021, "LoRA", without its constant α / r, which a
learning rate can say as well.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mctx.errors import UserError

A, B = "_lora_a", "_lora_b"  # what a projection's name is followed by; `base.low_rank` reads them
# Projection -> (the module it belongs to, axes of its input).
PROJECTIONS = {
    "q": ("attn", 1),
    "k": ("attn", 1),
    "v": ("attn", 1),
    "o": ("attn", 2),
    "gate": ("mlp", 1),
    "up": ("mlp", 1),
    "down": ("mlp", 1),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Shape of a LoRA: its rank, and the projections that have one."""

    rank: int = 4
    targets: tuple[str, ...] = ("q", "k", "v", "o")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> LoraConfig:
        """From JSON's plain types. Raises UserError for a projection that there is not."""
        config = cls(values["rank"], tuple(values["targets"]))
        unknown = sorted(set(config.targets) - set(PROJECTIONS))
        if unknown or config.rank < 1:
            raise UserError(
                f"a LoRA wants a rank of at least 1 and targets out of {', '.join(PROJECTIONS)}."
            )
        return config


def init(config: LoraConfig, base: dict, key: jax.Array) -> dict:
    """A fresh LoRA for these base parameters (shapes are enough), in float32."""
    made = {}
    for target, own in zip(config.targets, jax.random.split(key, len(config.targets)), strict=True):
        module, inputs = PROJECTIONS[target]
        shape = base["layers"][module][target]["kernel"].shape  # [L, *in, *out]
        layers, into, out = shape[0], shape[1 : 1 + inputs], shape[1 + inputs :]
        spread = 1 / math.sqrt(math.prod(into))
        a = spread * jax.random.normal(own, (layers, *into, config.rank))
        made["layers", module, target + A] = a
        made["layers", module, target + B] = jnp.zeros((layers, config.rank, *out))
    return unflatten_dict(made)


def graft(base: dict, lora: dict) -> dict:
    """The base's tree with a LoRA beside its projections; `Base` reads both."""
    return unflatten_dict(flatten_dict(base) | flatten_dict(lora))


def tuned(params: dict[str, Any]) -> dict[str, Any]:
    """Items as the `lora` item among them has it: the base grafted, a GistNet trained along put in
    place of the one there is. Without a `lora` item, the same items."""
    others = {name: item for name, item in params.items() if name != "lora"}
    for name, part in params.get("lora", {}).items():
        if name in others:
            others[name] = graft(others[name], part) if name == "base" else part
    return others


def kernel(own: dict, name: str) -> jax.Array:
    """W + A B of one layer's projection in its module's parameters, W where nothing is grafted:
    [*in, *out], float32."""
    whole = own[name]["kernel"].astype(jnp.float32)
    if name + A not in own:
        return whole
    return whole + jnp.tensordot(*(own[name + one].astype(jnp.float32) for one in (A, B)), 1)


def merge(base: dict, lora: dict) -> dict:
    """The base with W + A B in place of W: the same function, in the shape of any base.

    What is merged is summed in float32 and has the type of W again.
    """
    flat, grafted = flatten_dict(base), graft(base, lora)
    for *of, name in flatten_dict(lora):
        if name.endswith(A):
            target = name.removesuffix(A)
            made = jax.vmap(functools.partial(kernel, name=target))(grafted[of[0]][of[1]])
            flat[*of, target, "kernel"] = made.astype(flat[*of, target, "kernel"].dtype)
    return unflatten_dict(flat)
