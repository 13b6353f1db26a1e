"""What a session asks of the machine: operations of its matrix products, by what they are for."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np

from mctx.flops import Count
from mctx.focus.layout import FocusConfig
from mctx.models.finder import width
from mctx.models.lensnet import Nodes
from mctx.models.wrapped import Wrapped
from mctx.runtime import focusing, reading


class Spending:
    """Operations between two refocuses.

    read: tokens behind the working contexts. decide: the lens. assemble: rows of gists. ingest:
    windows that the base reads and their LOD1 gists, by whoever shares the session's reader. find:
    looks of the lens's finders, where it has some.
    """

    def __init__(self, session):
        self._session = weakref.proxy(session)
        self._own = {name: Count() for name in ("read", "decide", "assemble")}
        self._before = self._totals()

    def read(self, size: int) -> None:
        """One call that reads `size` tokens into the tail."""
        s, count = self._session, self._own["read"]
        if size in count:
            count.again(size, 1)
            return
        static = s.model, s.config.merger == "learned"
        behind = s.params, s.assembly.buffer, s.tail
        tokens = np.zeros(size, np.int32), np.int32(size), s.prefix_bias
        count.add(size, 1, reading.extend, static, *behind, *tokens)

    def scored(self, focus: FocusConfig, heads: int) -> None:
        """One look of the lens at the layouts of some heads."""
        s = self._session
        inputs = lens_inputs(s.model, focus, heads)
        self._own["decide"].add((focus, heads), 1, _lens, (s.model,), s.params, *inputs)

    def since_last(self, gists: int) -> dict[str, float]:
        """Operations since this was last asked, as scalars; `gists` rows were written meanwhile."""
        s = self._session
        one = np.zeros((1, 1, s.model.gist.width), np.float32)
        program = reading.rows_of_gists, (s.model,), s.params, one
        self._own["assemble"].add("gist", gists, *program)
        before, self._before = self._before, self._totals()
        return {f"refocus/flops/{name}": self._before[name] - before[name] for name in before}

    def _totals(self) -> dict[str, float]:
        counts = {**self._own, "ingest": self._session.reader.operations}
        if self._session.finding:
            counts["find"] = self._session.finding.operations
        return {name: count.total for name, count in counts.items()}


def lens_inputs(model: Wrapped, focus: FocusConfig, heads: int) -> tuple:
    """Shapes of what LensNet is given for the layouts of some heads: states, nodes, adapters."""
    nodes = focus.capacity + focusing.most_parents(focus, focus.capacity)

    def some(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((heads, *shape), dtype)

    states = (model.base.n_layers + 1, heads, model.lens.query, model.base.d_model)
    gists = some(nodes, model.gist.width, dtype=jnp.float32)
    found = some(nodes, width(model.lens, model.base), dtype=jnp.float32)
    candidates = Nodes(gists, some(nodes), some(nodes), some(nodes, dtype=bool), found)
    return jax.ShapeDtypeStruct(states, jnp.float32), candidates, some(1)


def _lens(model: Wrapped, params: dict, *inputs) -> jax.Array:
    return model.lensnet.apply({"params": params["lensnet"]}, *inputs)
