"""The layouts of a run as one raster: which level of detail was shown where, and when."""

from collections.abc import Iterable, Mapping

import numpy as np

from mctx.errors import UserError

DEEPEST = 3  # this level and all above share one code
SILENT, UNWRITTEN = DEEPEST + 1, DEEPEST + 2


def focus_raster(
    refocuses: Iterable[Mapping], rows: int, columns: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """The layouts of a run as LOD codes, int8 [rows, columns], and (first, written) in tokens.

    `refocuses` are layout records: {"position": tokens read so far, "level", "index", "shown": one
    value a node, "fanouts"}. A column stands for written/columns tokens of history, a row for
    (written - first)/rows tokens read. A pixel holds the finest LOD shown anywhere in it, SILENT
    where nothing is shown, UNWRITTEN ahead of what was read; the last row holds the last record
    too. Read tokens that are no node yet are in the decode tail: LOD0. UserError where a record
    lacks a field.
    """
    try:
        records = sorted(refocuses, key=lambda record: record["position"])
        positions = np.array([record["position"] for record in records])  # [R]
        first, written = int(positions[0]), int(positions[-1])
        lines = np.stack([_record_line(r, columns, written) for r in records])  # [R, columns]
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(
            "a focus map needs layout records with position, level, index, shown and fanouts:"
            " log them by running the session again."
        ) from None
    edges = np.linspace(first, written, rows + 1)[:-1]
    begin = np.searchsorted(positions, edges, "left")  # the row's first record
    end = np.searchsorted(positions, np.append(edges[1:], np.inf), "left")
    begin = np.minimum(begin, np.maximum(end - 1, 0))  # none falls in it: the one still in force
    raster = np.stack([lines[b : max(e, b + 1)].min(0) for b, e in zip(begin, end, strict=True)])
    return raster, (first, written)


def _record_line(record: Mapping, columns: int, written: int) -> np.ndarray:
    """One layout as the finest code in each column -> int8 [columns]."""
    level, index = np.asarray(record["level"], int), np.asarray(record["index"], int)  # [n]
    fanouts = np.asarray(record["fanouts"], int)
    spans = np.concatenate([fanouts[:1], np.cumprod(fanouts)])  # tokens, by level
    start, end = index * spans[level], (index + 1) * spans[level]
    code = np.where(np.asarray(record["shown"], bool), np.minimum(level, DEEPEST), SILENT)
    tail, read = end.max(initial=0), int(record["position"])
    if tail < read:
        start, end, code = np.append(start, tail), np.append(end, read), np.append(code, 0)
    left = start * columns // written
    right = -(-np.minimum(end, read) * columns // written)  # a column touched is a column covered
    line = np.full(columns, UNWRITTEN, np.int8)
    for finer in np.unique(code)[::-1]:
        marks = np.zeros(columns + 1, int)
        np.add.at(marks, left[code == finer], 1)
        np.add.at(marks, right[code == finer], -1)
        line[np.cumsum(marks[:-1]) > 0] = finer
    return line
