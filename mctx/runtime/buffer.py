"""The working context's keys and values: fixed buffers in which only changed rows are written.

Rows are unordered and positions carry the order. Rows that leave make holes; new rows fill them,
and what holes remain are filled by moving the last rows down, so that valid rows stay a prefix
(law 5). Which row holds what is known on the host; the device sees one scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EMPTY = -1
SLOT_BITS, LEVEL_BITS = 10, 4  # of a row's key: token or slot within its node, level, then index
MOST_ROWS = 2**SLOT_BITS  # of a node


class Plan(NamedTuple):
    """What turns one assembly of rows into another.

    Attributes:
      keys: [R], what each row holds afterwards, EMPTY past the valid prefix.
      new_row: rows to be written from outside. new_key: what goes there.
      move_to, move_from: rows that are copied within the buffer.
      positions: [R] int32, of each row's key in what was wanted (time order); 0 for empty rows.
    """

    keys: np.ndarray
    new_row: np.ndarray
    new_key: np.ndarray
    move_to: np.ndarray
    move_from: np.ndarray
    positions: np.ndarray


def encode(
    level: np.ndarray, index: np.ndarray, offset: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """One int64 a row. `kept` marks rows as decoded rather than from the ingest window."""
    key = index.astype(np.int64) << (SLOT_BITS + LEVEL_BITS + 1)
    return key | (kept.astype(np.int64) << (SLOT_BITS + LEVEL_BITS)) | (level << SLOT_BITS) | offset


class Decoded(NamedTuple):
    level: np.ndarray
    index: np.ndarray
    offset: np.ndarray
    kept: np.ndarray


def decode(key: np.ndarray) -> Decoded:
    return Decoded(
        (key >> SLOT_BITS) & (2**LEVEL_BITS - 1),
        key >> (SLOT_BITS + LEVEL_BITS + 1),
        key & (2**SLOT_BITS - 1),
        (key >> (SLOT_BITS + LEVEL_BITS)) & 1,
    )


def plan(held: np.ndarray, wanted: np.ndarray) -> Plan:
    """The fewest writes that make a buffer hold exactly `wanted` in a prefix of its rows.

    Args:
      held: [R] keys, EMPTY where nothing is. wanted: [w] distinct keys, w <= R.
    """
    stays, rank = within(held, wanted)
    lacking = np.ones(len(wanted), bool)
    lacking[rank[stays]] = False
    arriving = wanted[lacking]
    keys, places = np.where(stays, held, EMPTY), np.where(stays, rank, 0)
    holes = np.flatnonzero(~stays)
    new_row = holes[: len(arriving)]
    keys[new_row], places[new_row] = arriving, np.flatnonzero(lacking)
    # Rows past the prefix move into the holes that are left in it.
    empty = np.flatnonzero(keys[: len(wanted)] == EMPTY)
    beyond = len(wanted) + np.flatnonzero(keys[len(wanted) :] != EMPTY)
    keys[empty], places[empty] = keys[beyond], places[beyond]
    keys[beyond], places[beyond] = EMPTY, 0
    # A new row that would be moved at once is written where it ends.
    final = np.arange(len(held))
    final[beyond] = empty
    moved = stays[beyond]
    rows = final[new_row], arriving, empty[moved], beyond[moved]
    return Plan(keys, *rows, places.astype(np.int32))


def within(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `keys` [n] are among distinct `wanted` [w], and the place of those: [n], [n]."""
    if not len(wanted):
        return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    order = np.argsort(wanted)
    near = np.minimum(np.searchsorted(wanted, keys, sorter=order), len(wanted) - 1)
    place = order[near]
    return wanted[place] == keys, place
