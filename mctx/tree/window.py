"""The ingest window in which a text ends: it is read as it grows, behind the rows it has."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mctx.models.base import Rows


class Grown(NamedTuple):
    """Whole blocks that the window grows by, perhaps still in the making: their tokens, behind
    `length` others; and what `Reader.grow` makes of them."""

    tokens: np.ndarray | jax.Array
    length: int
    rows: Rows
    states: jax.Array
    gists: jax.Array


class OpenWindow:
    """Grows by `stride` tokens at once where so many have come, else by a block.

    Attributes:
      length: tokens read so far, whole blocks.
    """

    def __init__(self, reader, stride: int):
        self._reader, self._stride = reader, stride
        self._asked: Grown | None = None
        self.begin()

    @property
    def lost(self) -> bool:
        """Whether a reading that failed has used up its rows."""
        held = jax.tree.leaves(self._rows)
        return any(isinstance(x, jax.Array) and x.is_deleted() for x in held)

    def begin(self) -> None:
        """Holds nothing."""
        self._rows = self._reader.empty_window()
        self.close()

    def step(self, count: int) -> int:
        """By how many of `count` tokens, at least a block, it grows next."""
        room = min(count, self._reader.model.window - self.length)
        return self._stride if self._stride <= room else self._reader.model.gist.block

    def ask(self, tokens: np.ndarray | jax.Array) -> jax.Array | None:
        """Begins to read what will probably be fed next; it may turn out to be something else.

        Args:
          tokens: [n], perhaps still in the making on the device.

        Returns:
          The states [L + 1, n, D] of all of them, in the making; None where one call of `grow`
          does not read just these.
        """
        whole = not self.length and len(tokens) >= self._reader.model.window
        if whole or len(tokens) < self._reader.model.gist.block:
            return None
        size = self.step(len(tokens))
        if isinstance(tokens, jax.Array):
            self._asked = self._read(tokens) if size == len(tokens) else None
        elif not self._knows(tokens[:size]):
            self._asked = self._read(tokens[:size])
        return self._asked.states if size == len(tokens) else None

    def read(self, tokens: np.ndarray) -> Grown:
        """The first of these tokens, by which it grows next; read before, if they were asked for.
        They are its own when it is told so (`grow`): until then they may be read once more."""
        tokens = tokens[: self.step(len(tokens))]
        grown = self._asked if self._knows(tokens) else self._read(tokens)
        self._asked = None
        return grown

    def grow(self, count: int) -> None:
        """So many tokens, read last, are its own; a window that is full gives way to the next."""
        self.length = (self.length + count) % self._reader.model.window

    def close(self) -> None:
        """What follows begins a window of its own."""
        self.length = 0
        self._asked = None

    def state(self) -> dict[str, np.ndarray]:
        """All that it holds, on the host."""
        k, v = jax.device_get(self._rows)
        return {"open_k": k, "open_v": v, "open_length": np.array(self.length)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes on exactly where `state` was asked for."""
        k, v = (jax.device_put(state[name], self._rows.k.sharding) for name in ("open_k", "open_v"))
        self._rows = Rows(k, v)
        self.length, self._asked = int(state["open_length"]), None

    def _knows(self, tokens):
        asked = self._asked
        return asked and asked.length == self.length and np.array_equal(asked.tokens, tokens)

    def _read(self, tokens):
        """Behind the rows so far, which stay as they are."""
        self._rows, *made = self._reader.grow(tokens, self._rows, self.length)
        return Grown(tokens, self.length, *made)
