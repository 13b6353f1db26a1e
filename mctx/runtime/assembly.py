"""From layouts to rows: what the buffers of all heads hold, and how they come to hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mctx.focus.layout import FocusConfig, Layout
from mctx.models.base import Rows
from mctx.models.gistnet import GistConfig
from mctx.models.wrapped import Wrapped
from mctx.runtime import buffer as slots
from mctx.runtime import reading
from mctx.runtime.cache import BlockCache
from mctx.runtime.lanes import Lanes
from mctx.runtime.rows import Buffer, Tail
from mctx.runtime.storeys import Pair
from mctx.tree.store import Tree

BLOCKS_AT_ONCE = 4  # of rows written by one call of fixed shape
GIST_ROWS_AT_ONCE = 64  # or as many as the largest gist has
MOVES_AT_ONCE = 64
NOTHING: Mapping[int, Pair] = MappingProxyType({})


GistRows = Callable[[int, np.ndarray], Rows]  # level, indices [m] -> [L, `gist_rows_at_once`, …]


def gist_rows_at_once(gist: GistConfig) -> int:
    """Rows that one call makes and writes, of whatever level: whole gists of each."""
    return max(gist.entries) * -(-GIST_ROWS_AT_ONCE // max(gist.entries))


def trained_rows(model: Wrapped, params: dict, tree: Tree) -> GistRows:
    """What the base reads for the gists in a tree, and as many rows more as a call makes."""
    most = gist_rows_at_once(model.gist)

    def rows(level: int, indices: np.ndarray) -> Rows:
        slots = tree.gather(level, indices).reshape(-1, 1, model.gist.width)  # each for itself
        slots = np.pad(slots, ((0, most - len(slots)), (0, 0), (0, 0)))
        return reading.rows_of_gists(model, params, slots)

    return rows


class Decoded(NamedTuple):
    """Blocks that were decoded since the last refocus and may stay as they are ('keep').

    Attributes:
      first: index of the first; count: how many; tail: where their rows are.
    """

    first: int
    count: int
    tail: Tail


class Written(NamedTuple):
    """What an assembly cost: rows written, those of gists among them, rows moved within the
    buffer, and rows wanted in all."""

    rows: int
    gists: int
    moved: int
    wanted: int


class Assembly:
    """The buffers of the H heads of one lane, and what each of their rows holds."""

    def __init__(
        self,
        model: Wrapped,
        params: dict,
        tree: Tree,
        cache: BlockCache,
        focus: FocusConfig,
        lanes: Lanes,
        lane: int = 0,
        gist_rows: GistRows | None = None,
    ):
        self._model, self._cache, self._focus, self._tree = model, cache, focus, tree
        self._lanes, self._lane, self._first = lanes, lane, lanes.first(lane)
        self._gist_rows = gist_rows or trained_rows(model, params, tree)
        self._keys = np.full((lanes.heads, focus.budget), slots.EMPTY, np.int64)
        self._positions = np.zeros(self._keys.shape, np.int32)
        self._counts = np.zeros(lanes.heads, np.int32)
        self._wanted: list[np.ndarray] = []
        self._life, self._stands = lanes.life, False
        layers, _, _, *row = lanes.made.k.shape
        shape, dtype = (layers, model.gist.block, *row), lanes.made.k.dtype
        one = jnp.zeros(shape, dtype, device=lanes.where)
        self._nothing = one, one  # a block where a call writes fewer than it has room for

    @property
    def buffer(self) -> Buffer | None:
        """What the running heads read; None until they `stand`."""
        return self._lanes.one(self._lane) if self.stands else None

    @property
    def stands(self) -> bool:
        """Whether heads run on what was assembled last, and nothing of it is lost."""
        return self._stands and self._life == self._lanes.life and not self._lanes.lost

    def stand(self, heads: np.ndarray) -> None:
        """These heads [k] run on what was assembled last."""
        heads = np.asarray(heads)
        self._lanes.stand(self._lane, heads, self._positions[heads], self._counts[heads])
        self._stands = True

    def wanted(self, layout: Layout) -> np.ndarray:
        """Keys of the rows that one layout shows, in time order, all from ingest windows: [w]."""
        live = slice(0, int(layout.count))
        level, index = np.asarray(layout.level)[live], np.asarray(layout.index)[live]
        cost = np.where(np.asarray(layout.shown)[live], np.asarray(self._focus.costs)[level], 0)
        offset = np.arange(cost.sum()) - np.repeat(np.cumsum(cost) - cost, cost)
        level, index = np.repeat(level, cost), np.repeat(index, cost)
        return slots.encode(level, index, offset, np.zeros_like(level))

    def lacking(self, layouts: Layout) -> np.ndarray:
        """Blocks shown by layouts [H, n] of which a head holds no rows of their windows: [m]."""
        new = []
        for head, held in enumerate(self._keys):
            wanted = self.wanted(_of_head(layouts, head))
            new.append(wanted[~slots.within(wanted, np.unique(held))[0]])
        parts = slots.decode(np.concatenate(new))
        return np.unique(parts.index[parts.level == 0])

    def assemble(
        self,
        layouts: Layout,
        decoded: Decoded | None = None,
        before: int | None = None,
        ready: Mapping[int, Pair] = NOTHING,
    ) -> Written:
        """Makes every head hold what its layout shows; writes only what changed. It is not read
        before heads `stand` on it.

        Args:
          layouts: [H, n], on the host.
          decoded: rows of the tail to keep, or None.
          before: blocks from this one on are left out: the tail will read them again.
          ready: rows of blocks that were fetched before.
        """
        self._renew()
        heads = range(len(self._keys))
        self._wanted = [self._wants(h, layouts, decoded, before) for h in heads]
        return self._write(decoded, ready)

    def remake(self, heads: np.ndarray) -> None:
        """What was assembled last is there again, and these heads run on it: what a failure has
        lost, or left undone, is written from ingest windows."""
        self._renew()
        self._wanted = [self._at_hand(h, wanted) for h, wanted in enumerate(self._wanted)]
        self._write(None, NOTHING)
        self.stand(heads)

    def _renew(self):
        self._lanes.renew()
        if self._life != self._lanes.life:
            self.forget()
            self._life = self._lanes.life

    def _at_hand(self, head, wanted):
        """Of rows as they were decoded, those that are lost come from ingest windows."""
        there, parts = slots.within(wanted, self._keys[head])[0], slots.decode(wanted)
        return slots.encode(*parts[:3], np.where(there, parts.kept, 0))

    def _write(self, decoded, ready) -> Written:
        wanted = self._wanted
        plans = [slots.plan(*pair) for pair in zip(self._keys, wanted, strict=True)]
        new = slots.decode(np.concatenate([plan.new_key for plan in plans]))
        # All windows that miss are read at once, and before anything is written.
        windows = np.unique(new.index[(new.level == 0) & (new.kept == 0)])
        absent = np.array([block for block in windows.tolist() if block not in ready], np.int64)
        blocks = {**ready, **self._cache.fetch(absent)}
        self._stands = False
        for head, plan in enumerate(plans):
            self._keys[head] = slots.EMPTY  # should anything fail, these rows are written anew
            self._carry_out(head, plan, decoded, blocks)
            self._keys[head] = plan.keys
            self._positions[head] = plan.positions
            self._counts[head] = len(wanted[head])
        return Written(
            len(new.level),
            int(np.sum(new.level > 0)),
            sum(len(plan.move_to) for plan in plans),
            int(self._counts.sum()),
        )

    def holds(self, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Level and index of the nodes of which a head's buffer holds rows of ingest windows."""
        parts = slots.decode(self._keys[head][self._keys[head] != slots.EMPTY])
        first = (parts.offset == 0) & (parts.kept == 0)
        return parts.level[first], parts.index[first]

    def _wants(self, head, layouts, decoded, before):
        layout = _of_head(layouts, head)
        wanted = self._as_decoded(head, self.wanted(layout), layout, decoded)
        if before is not None:
            parts = slots.decode(wanted)
            wanted = wanted[(parts.level > 0) | (parts.index < before)]
        return wanted

    def marks(self) -> np.ndarray:
        """Where what each row was made from lies in the tree: [H, R, 3], zeros for empty rows."""
        found = np.zeros((*self._keys.shape, 3), np.int64)
        parts = slots.decode(self._keys)
        for level in np.unique(parts.level[self._keys != slots.EMPTY]).tolist():
            here = (parts.level == level) & (self._keys != slots.EMPTY)
            rows = parts.index[here] * (1 if level else self._model.gist.block)
            found[here] = self._tree.addresses(level, rows)
        return found

    def forget_changed(self, marks: np.ndarray) -> None:
        """Drops the rows of nodes that have been replaced in the tree since `marks` was asked."""
        self._keys[np.any(self.marks() != marks, axis=-1)] = slots.EMPTY

    def forget_decoded(self) -> None:
        """Drops rows of blocks as they were decoded: the next assembly has their windows'."""
        self._keys[slots.decode(self._keys).kept == 1] = slots.EMPTY

    def forget(self) -> None:
        """Drops what the buffers hold: the next assembly writes every row anew."""
        self._keys[:] = slots.EMPTY

    def state(self) -> dict[str, np.ndarray]:
        """All that the heads hold, on the host."""
        rows = self._lanes.state(self._lane)._asdict()
        return {"keys": self._keys, **rows, "positions": self._positions, "count": self._counts}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Holds again what `state` told."""
        held = (state[name].copy() for name in ("keys", "positions", "count"))
        self._keys, self._positions, self._counts = held
        self._lanes.restore(self._lane, Rows(state["k"], state["v"]))
        self._wanted = [
            keys[np.argsort(np.where(keys == slots.EMPTY, len(keys), places))[:count]]
            for keys, places, count in zip(self._keys, self._positions, self._counts, strict=True)
        ]

    def _as_decoded(self, head, wanted, layout, decoded):
        """Recent blocks stay as they were decoded, where such rows are at hand."""
        if decoded is None:
            return wanted
        parts = slots.decode(wanted)
        end = int(parts.index[parts.level == 0].max(initial=-1)) + 1
        recent = (parts.level == 0) & (parts.index >= end - self._focus.recent)
        parts = slots.Decoded(*(x[recent] for x in parts))
        kept = slots.encode(*parts[:3], np.ones_like(parts.kept))
        fresh = parts.index >= decoded.first
        fresh &= parts.index < decoded.first + decoded.count
        fresh &= head in np.asarray(decoded.tail.heads)
        there, _ = slots.within(kept, self._keys[head])
        wanted[recent] = np.where(fresh | there, kept, wanted[recent])
        return wanted

    def _carry_out(self, head, plan, decoded, blocks):
        for at in range(0, len(plan.move_to), MOVES_AT_ONCE):
            to, source = (x[at : at + MOVES_AT_ONCE] for x in (plan.move_to, plan.move_from))
            to = self._padded(to, MOVES_AT_ONCE)
            source = np.pad(source, (0, MOVES_AT_ONCE - len(source)))
            self._lanes.move(self._first + head, to, source)
        parts = slots.decode(plan.new_key)
        gists = parts.level > 0
        kept = (parts.kept == 1) & ~gists
        self._write_gists(head, plan.new_row[gists], *(x[gists] for x in parts))
        window = ~gists & ~kept
        self._write_blocks(head, blocks, plan.new_row[window], *(x[window] for x in parts))
        if kept.any():
            self._write_decoded(head, plan.new_row[kept], *(x[kept] for x in parts), decoded)

    def _write_gists(self, head, to, level, index, offset, kept):
        most = gist_rows_at_once(self._model.gist)
        for one in np.unique(level):
            per = self._model.gist.entries[one - 1]
            nodes = np.unique(index[level == one])
            for at in range(0, len(nodes), most // per):
                piece = nodes[at : at + most // per]
                rows = self._gist_rows(int(one), piece)
                here = (level == one) & np.isin(index, piece)
                target = np.full(most, len(self._keys[head]), np.int64)
                target[np.searchsorted(piece, index[here]) * per + offset[here]] = to[here]
                self._lanes.write(self._first + head, target, rows)

    def _write_blocks(self, head, blocks, to, level, index, offset, kept):
        block = self._model.gist.block
        nodes = np.unique(index)
        for at in range(0, len(nodes), BLOCKS_AT_ONCE):
            piece = nodes[at : at + BLOCKS_AT_ONCE]
            found = [blocks[node] for node in piece.tolist()]
            found += [self._nothing] * (BLOCKS_AT_ONCE - len(found))
            here = np.isin(index, piece)
            target = np.full(BLOCKS_AT_ONCE * block, len(self._keys[head]), np.int64)
            target[np.searchsorted(piece, index[here]) * block + offset[here]] = to[here]
            self._lanes.write_blocks(self._first + head, target, found)

    def _write_decoded(self, head, to, level, index, offset, kept, decoded):
        tail = decoded.tail
        slot = int(np.flatnonzero(np.asarray(tail.heads) == head)[0])
        target = np.full(tail.rows.k.shape[2], len(self._keys[head]), np.int64)
        target[(index - decoded.first) * self._model.gist.block + offset] = to
        self._lanes.write_tail(self._first + head, target, tail.rows, slot)

    def _padded(self, rows, size):
        """Row numbers padded by one past the buffer, which a scatter drops."""
        return np.pad(rows, (0, size - len(rows)), constant_values=self._keys.shape[1])


def _of_head(layouts: Layout, head: int) -> Layout:
    return Layout(*(np.asarray(x)[head] for x in layouts))
