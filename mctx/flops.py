"""How many floating-point operations a traced program asks for: its matrix products.

XLA's own cost analysis counts the body of a loop once, and a base that scans over its layers is
one loop; here a scan's body counts as often as it runs. What is no matrix product (norms,
softmax, rotations) is left out, as usual where utilisation is told.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import AbstractDevice

PEAKS = {  # dense bfloat16 operations a second of one device, as its maker states it
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
PLAIN = AbstractDevice(device_kind="cpu", num_cores=None, platform="cpu")


def peak(device_kind: str) -> float | None:
    """Operations a second that a device can do at most; None for one that is not in the table."""
    names = [name for name in PEAKS if device_kind.startswith(name)]
    return PEAKS[max(names, key=len)] if names else None


def plain_flops(function: Callable, *args: Any) -> float:
    """`flops` of a program as a machine without fused kernels would run it.

    A kernel's inside is not seen otherwise. What a backward pass computes again counts again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    plain = mesh.update(abstract_device=PLAIN)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    with jax.sharding.use_abstract_mesh(plain):
        return flops(function, *bare)


def flops(function: Callable, *args: Any) -> float:
    """Operations of the matrix products in one call of `function`; nothing is computed.

    Args:
      args: arrays, or `jax.ShapeDtypeStruct`s in their place; bind static ones beforehand.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def operations(function: Callable, static: tuple, *args: Any) -> float:
    """Of one call `function(*static, *args)`. Each shape is traced once in a process, whoever
    asks: a module's function, not a method's or a closure's."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), args)
    leaves, tree = jax.tree.flatten(abstract)
    return _operations(function, static, tuple(leaves), tree)


@functools.lru_cache(maxsize=512)
def _operations(function, static, leaves, tree):
    return flops(functools.partial(function, *static), *jax.tree.unflatten(tree, leaves))


class Count:
    """Operations of many calls; what one costs is known by its key after the first."""

    def __init__(self):
        self.total = 0.0
        self._cost: dict[Hashable, float] = {}

    def add(self, key: Hashable, calls: int, function: Callable, static: tuple, *args) -> None:
        """Adds `calls` calls `function(*static, *args)`; the same key must mean the same shapes."""
        if key not in self._cost:
            self._cost[key] = operations(function, static, *args)
        self.again(key, calls)

    def __contains__(self, key: Hashable) -> bool:
        """Whether what such a call costs is known."""
        return key in self._cost

    def again(self, key: Hashable, calls: int) -> None:
        """Adds `calls` calls more of a known key."""
        self.total += calls * self._cost[key]


def _of(jaxpr: core.Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn) -> float:
    if equation.primitive.name == "dot_general":
        return _of_product(equation)
    inner = sum(_of(jaxpr) for jaxpr in _jaxprs(equation.params))
    # A `while` that is no scan has no length before it runs: one turn is counted.
    return inner * equation.params.get("length", 1)


def _of_product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _jaxprs(params: dict) -> list[core.Jaxpr]:
    """The programs inside an equation; of a `cond`'s branches only the longest counts."""
    if "branches" in params:
        return [max((closed.jaxpr for closed in params["branches"]), key=_of)]
    values = [value for value in params.values() if not isinstance(value, (tuple, list))]
    found = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in found if isinstance(value, core.Jaxpr)]
