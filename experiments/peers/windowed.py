"""Full attention, and sinks with recent rows, as something that can be read and continued."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import score
from mctx.models.base import token_nll
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened
from mctx.runtime.generation import CONTEXT, one_by_one
from mctx.runtime.sampling import Sampling


class Last(NamedTuple):
    """last: [D], the hidden state that predicts the next token."""

    last: jax.Array


class Windowed:
    """Reads ids behind the first `sinks` and the last rows, as `experiments.score` does.

    It can be read and continued as a `Session` can, without a tree.

    Args:
      budget: rows that stand before a block. No fewer than all ids: this is the plain base.
    """

    def __init__(self, opened: Opened, budget: int, sinks: int):
        self.opened, self.params = opened, opened.params
        self.held = score.empty_window(opened, budget)
        self.waiting = np.zeros(0, np.int32)  # of a block that is not complete
        self.before = jnp.zeros(opened.model.base.d_model)  # predicts the block's first token
        self.tail = Last(self.before)
        self._last = self.waiting  # ids that were read last
        self._fixed = sinks + len(opened.model.base.prefix)

    def read_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """NLL of each token; of the very first one it means nothing."""
        self._last = np.concatenate([self._last, tokens])[-CONTEXT:]
        nll, block = [np.zeros(0, np.float32)], self.opened.model.gist.block
        while len(tokens):
            known = len(self.waiting)
            piece, tokens = np.split(tokens, [block - known])
            whole = np.concatenate([self.waiting, piece]).astype(np.int32)
            complete = len(whole) == block
            padded = np.pad(whole, (0, block - len(whole)))
            held, each, hidden = read_piece(
                self.opened.model,
                self._fixed,
                complete,
                self.params,
                self.held,
                self.before,
                padded,
            )
            nll.append(np.asarray(each)[known : len(whole)])
            self.tail = Last(hidden[len(whole) - 1])
            if complete:
                self.held, self.before, whole = held, self.tail.last, whole[:0]
            self.waiting = whole
        return np.concatenate(nll)

    def recent(self, count: int) -> np.ndarray:
        """The last ids that were read, at most `count` and `CONTEXT`."""
        return self._last[-count:]

    def drawn(self, count: int, sampling: Sampling) -> Iterator[int]:
        """Tokens drawn after the last one read."""
        return one_by_one(self, count, sampling)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def read_piece(
    model: Wrapped,
    fixed: int,
    complete: bool,
    params: dict,
    held: score.Window,
    before: jax.Array,
    tokens: jax.Array,
) -> tuple[score.Window | None, jax.Array, jax.Array]:
    """Reads a block [K] behind a window; the window moves on only past a complete one.

    Returns:
      The window then; NLL [K], of the first token given `before` [D]; hidden states [K, D].
    """
    out = score.read_behind(model, params, held, tokens)
    known = jnp.concatenate([before[None].astype(out.hidden.dtype), out.hidden[0, :-1]])
    nll = token_nll(params["base"], known[None], tokens[None])[0]
    moved = score.slid(held, out.rows, len(model.base.prefix), fixed) if complete else None
    return moved, nll, out.hidden[0].astype(jnp.float32)
