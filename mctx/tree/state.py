"""What can be read through one handle: what is committed, and what was staged here since.

Rows are given their place in the writer's epoch when they are staged, in the order in which they
come; so an uncommitted row has the address that it will keep, and a replacement is new rows and
another list of extents, exactly as in a HEAD.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mctx.tree import arrays as stored
from mctx.tree.documents import Documents
from mctx.tree.extents import DEAD, Extents, count, spliced
from mctx.tree.head import Head
from mctx.tree.pages import Rows

NOWHERE = 2**62  # no row is as high: nothing of a reader's is pending


class Change(NamedTuple):
    """Logical rows [start, start + length) of a level become `values`, or dead where None.

    `start` is at most the level's count; rows past it are new. values: int32 [length] tokens, or
    gists [length, slots, gist_width], of bfloat16 or what is rounded to it.
    """

    level: int
    start: int
    length: int
    values: np.ndarray | None


class State(NamedTuple):
    """Replaced as one, so that readers in other threads see one or another and no mix.

    Attributes:
      head: what is committed.
      extents, documents: with what was staged.
      pending: by level, rows as stored that are not committed; they only ever grow at the end.
      first: by level, the row of the writer's epoch at which `pending` begins.
      edition: see `Head`.
    """

    head: Head
    extents: tuple[Extents, ...]
    documents: Documents
    pending: tuple[Rows, ...]
    first: tuple[int, ...]
    edition: int

    @classmethod
    def at(cls, head: Head, first: Sequence[int] | None = None) -> "State":
        """Nothing staged; `first` when this is the writer's."""
        first = first or [NOWHERE] * len(head.extents)
        return cls(head, head.extents, head.documents, _no_rows(head), tuple(first), head.edition)

    def rows(self, level: int) -> int:
        """Tokens for level 0, gists above."""
        return count(self.extents[level])

    def staged(self, changes: Sequence[Change], documents: Documents | None) -> "State":
        """With changes whose values are as stored, and other documents if they are given."""
        extents, replaced = list(self.extents), False
        for level, start, length, values in changes:
            epoch, row = DEAD, 0
            if values is not None:
                epoch, row = self.head.epoch, self.first[level] + len(self.pending[level])
                # Bits were made for us, or are of a constant; tokens may be the caller's to change.
                self.pending[level].extend(values, level > 0 or not values.flags.writeable)
            extents[level] = spliced(extents[level], start, epoch, row, length)
            replaced |= start < self.rows(level)
        documents = self.documents if documents is None else documents
        edition = self.edition + replaced
        return self._replace(extents=tuple(extents), documents=documents, edition=edition)

    def placed(self, level: int, start: int, epoch: int, row: int, length: int) -> "State":
        """With logical rows at another place, where they are stored already."""
        extents = list(self.extents)
        extents[level] = spliced(extents[level], start, epoch, row, length)
        return self._replace(extents=tuple(extents))

    def lengths(self) -> tuple[int, ...]:
        """Pending rows, by level."""
        return tuple(len(rows) for rows in self.pending)

    def committed(self, head: Head, lengths: Sequence[int]) -> "State":
        """This state once its first `lengths` pending rows are `head`'s; there may be more."""
        pending = _no_rows(head)
        for rest, rows, length in zip(pending, self.pending, lengths, strict=True):
            for part in rows.parts(length, len(rows)):
                rest.extend(part, keep=True)
        first = tuple(a + b for a, b in zip(self.first, lengths, strict=True))
        return self._replace(head=head, pending=pending, first=first)


def _no_rows(head: Head) -> tuple[Rows, ...]:
    levels = range(head.spec.levels + 1)
    return tuple(
        Rows(stored.row_shape(head.spec, level), stored.row_dtype(level)) for level in levels
    )
