"""Measurements on segments of text: one file a suite, each a few pure functions that return rows.

A suite says which checkpoint items it needs and how many tokens a segment must have, and turns
segments into {name of a result: its rows}.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mctx.models.wrapped import Wrapped


class Suite(NamedTuple):
    """Attributes:
    items: checkpoint items it reads.
    length: model -> tokens of a segment; None where the base's trained window is too short.
    measure: (model, params, tokens [n, length], seed) -> {name: rows of a result file}.
    notes: what a reader of the results must know.
    """

    items: tuple[str, ...]
    length: Callable[[Wrapped], int | None]
    measure: Callable[[Wrapped, dict, np.ndarray, int], dict[str, list[dict]]]
    notes: tuple[str, ...] = ()
