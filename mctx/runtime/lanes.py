"""The rows of several sessions side by side, in arrays that they share: one step reads them all.

A session on its own has one lane. What a refocus writes, it writes into its own lane.
"""

from __future__ import annotations

import jax
import numpy as np

from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped
from mctx.runtime import rows
from mctx.runtime.config import SessionConfig
from mctx.runtime.memory import room_for
from mctx.runtime.rows import Buffer
from mctx.sharding import beside, put


def lanes_for(
    model: Wrapped, config: SessionConfig, budget: int, prefix: Rows, lanes: int = 1
) -> Lanes:
    """Room for sessions of one configuration; `budget`: rows of a head, as its focus has them."""
    with room_for("the rows of the working contexts", config, "budget", "heads"):
        return Lanes(model, budget, config.heads, config.top, prefix, lanes)


class Lanes:
    """Rows as they were made, from which refocuses gather, and as they stand, which are read.

    Values are held once where all heads run; keys are held unrotated and rotated.

    Args:
      budget: rows of one head. heads, top: of one lane, and how many of them run.
      prefix: the shared prefix's rows, unrotated.

    Attributes:
      made: unrotated, [L, lanes·heads, R, K, h]. where: where all of them stand.
      life: how often all rows were lost and begun anew.
    """

    def __init__(
        self, model: Wrapped, budget: int, heads: int, top: int, prefix: Rows, lanes: int = 1
    ):
        self._model, self.heads, self.top, self.count = model, heads, top, lanes
        self.prefix = rows.turned_prefix(model, prefix)
        self.where, self.life, self._budget = beside(prefix), 0, budget
        self._begin()
        self._counts = np.zeros((lanes, top), np.int32)

    def _begin(self):
        model, lanes, heads, top = self._model, self.count, self.heads, self.top
        self.made = rows.empty_rows(model, lanes * heads, self._budget, self.where)
        # Where all heads run, their values are read where they were written.
        self._own_values = top < heads
        self._keys, values = rows.empty_rows(model, lanes * top, self._budget, self.where)
        self._values = values if self._own_values else None

    @property
    def nbytes(self) -> int:
        """Of all rows, as they were made and as they stand."""
        return sum(x.nbytes for x in self._all())

    @property
    def lost(self) -> bool:
        """Whether a write that failed has used up what it was to write into."""
        return any(x.is_deleted() for x in self._all())

    def renew(self) -> None:
        """Where rows are lost, those of all lanes are begun anew."""
        if self.lost:
            self._begin()
            self.life += 1

    def _all(self):
        own = [self._values] if self._own_values else []
        return *self.made, self._keys, *own

    def first(self, lane: int) -> int:
        """The first head of a lane among all."""
        return lane * self.heads

    def move(self, head: int, to: np.ndarray, source: np.ndarray) -> None:
        """Copies rows within one head; see `rows.move_rows`."""
        self.made = rows.move_rows(self.made, np.int32(head), to, source)

    def write(self, head: int, to: np.ndarray, new: Rows) -> None:
        """Writes rows into one head; see `rows.write_rows`."""
        self.made = rows.write_rows(self.made, np.int32(head), to, new)

    def write_tail(self, head: int, to: np.ndarray, tail: rows.TailRows, slot: int) -> None:
        """Writes a tail's rows into one head; see `rows.write_tail`."""
        self.made = rows.write_tail(self.made, np.int32(head), to, tail.k, tail.v, np.int32(slot))

    def write_blocks(self, head: int, to: np.ndarray, blocks: list) -> None:
        """Writes blocks into one head, wherever they come from; see `rows.write_blocks`."""
        self.made = rows.write_blocks(self.made, np.int32(head), to, put(blocks, self.where))

    def stand(self, lane: int, heads: np.ndarray, positions: np.ndarray, counts: np.ndarray):
        """Rotates what the running heads [k] of a lane hold, for positions [k, R]; the first
        `counts` [k] rows of each are read from now on."""
        source = (self.first(lane) + heads).astype(np.int32)
        at = np.int32(lane * self.top)
        turned = self._model, self._keys, self.made.k, source, at, positions.astype(np.int32)
        self._keys = rows.turn(*turned)
        if self._own_values:
            self._values = rows.choose(self._values, self.made.v, source, at)
        self._counts = self._counts.copy()  # a step under way may still read the other
        self._counts[lane] = counts

    def whole(self) -> Buffer:
        """All lanes: rows [L, lanes·k, R, K, h], count [lanes, k]."""
        values = self._values if self._own_values else self.made.v
        return Buffer(self.prefix, Rows(self._keys, values), self._counts)

    def one(self, lane: int) -> Buffer:
        """What one lane reads, in arrays of its own where it is not the only one."""
        whole, at = self.whole(), slice(lane * self.top, (lane + 1) * self.top)
        if self.count == 1:
            return whole._replace(count=whole.count[0])
        return Buffer(whole.prefix, Rows(*(x[:, at] for x in whole.rows)), whole.count[lane])

    def state(self, lane: int) -> Rows:
        """A lane's rows as they were made, on the host: [L, heads, R, K, h]."""
        at = slice(self.first(lane), self.first(lane + 1))
        return Rows(*(np.asarray(x[:, at]) for x in self.made))

    def restore(self, lane: int, state: Rows) -> None:
        """Holds again what `state` told."""
        first, state = self.first(lane), jax.device_put(state, self.where)
        self.made = Rows(
            *(
                jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=1)
                for x, new in zip(self.made, state, strict=True)
            )
        )
