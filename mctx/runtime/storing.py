"""How a session commits while it streams, whatever the store is doing.

What was read is staged in the tree, in memory, and nothing of it is ever dropped. A slow store is
not waited for: while a commit is under way, none is begun. A commit that failed has left the tree
as it was; the next one holds the same rows and those since. Only where more than `limit` tokens
would wait in memory, the store is waited for, or its error is raised: then the history stops, and
goes on, with nothing missing, with what is behind `Session.length`. That another writer has taken
the tree over is raised at once: nothing read since could ever be stored.

A call that returns to its user (`ingest`, `predict`, `generate`) ends with a commit that waits and
raises: what it has read is then on disk, or the user knows that it is not yet.
"""

from __future__ import annotations

import time

from mctx.tree.head import StoreError
from mctx.tree.store import Tree


class Storing:
    """The commits of one session's own tree.

    Attributes:
      failed: commits that failed so far. deferred: those that were due and not begun, because the
        one before was under way. stalled: milliseconds waited for a store that was too slow.
    """

    def __init__(self, tree: Tree, limit: int):
        self._tree, self._limit = tree, limit
        self.failed = self.deferred = 0
        self.stalled = 0.0

    @property
    def waiting(self) -> int:
        """Tokens in memory that are not known to be stored."""
        return self._tree.length - self._tree.head.count(0)

    @property
    def full(self) -> bool:
        """Whether more waits than may."""
        return self.waiting > self._limit

    def due(self) -> None:
        """A commit is due: begun in the background if the store keeps up, else as said above.

        Raises:
          StoreError: it fails, and more tokens wait than may.
        """
        if self._tree.committing and not self.full:
            self.deferred += 1
            return
        began, full = time.perf_counter(), self.full
        self._settle()
        try:
            self._tree.commit(wait=full)
        except StoreError:
            self.failed += 1
            raise
        finally:
            if full:
                self.stalled += 1e3 * (time.perf_counter() - began)

    def now(self) -> None:
        """Commits all and waits.

        Raises:
          StoreError: what is staged is still staged, and the next commit will try again.
        """
        self._settle()
        self._tree.commit()

    def _settle(self):
        """A commit that failed in the background is made again by the one that follows."""
        try:
            self._tree.settle()
        except StoreError:
            self.failed += 1

    def report(self) -> dict[str, float]:
        """Scalars: what waits, and what the store has cost and missed so far."""
        return {
            "store/tokens_waiting": float(self.waiting),
            "store/commits_failed": float(self.failed),
            "store/commits_deferred": float(self.deferred),
            "store/ms_stalled": self.stalled,
        }
