"""How many floating-point operations a traced program asks for: its matrix products.

XLA's own cost analysis counts the body of a loop once, and a base that scans over its layers is
one loop; here a scan's body counts as often as it runs. What is no matrix product (norms,
softmax, rotations) is left out, as usual where utilisation is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.extend import core


def flops(function: Callable, *args: Any) -> float:
    """Operations of the matrix products in one call of `function`; nothing is computed.

    Args:
      args: arrays, or `jax.ShapeDtypeStruct`s in their place; bind static ones beforehand.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


class Count:
    """Operations of many calls; a program is traced at its first call, then known by its key."""

    def __init__(self):
        self.total = 0.0
        self._cost: dict[Hashable, float] = {}

    def add(self, key: Hashable, calls: int, function: Callable, *args: Any) -> None:
        """Adds `calls` calls of a function; the same key must mean the same shapes."""
        if key not in self._cost:
            self._cost[key] = flops(function, *args)
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
