"""What a method costs: time, operations, bytes of the tree, memory."""

from __future__ import annotations

import resource
import sys
from typing import NamedTuple

import jax
import numpy as np

from mctx.tree.store import Tree


class Cost(NamedTuple):
    """What one method costs on one history; compilation is in none of it.

    Attributes:
      ms_refocus: choosing and making every entry anew, rows of blocks from the host's cache: the
        most that a refocus can cost, since a stream writes only what changed (law 7).
      ms_token: a token decoded behind the entries, one at a time.
      flops_token, flops_refocus: operations of the matrix products in the traced programs
        (`mctx.flops`); what is chosen on the host adds none.
      tree_bytes: gists and tokens that the refocus asked of the tree, stored size.
      entries: before the tail, in all heads that run.
      host_bytes: the most that this process has held so far; device_bytes: likewise of its first
        device, None where the device does not say. Both are the process's, not the method's.
      tail: the policy of the recent tokens' rows: 'fresh' (read with the rest) or 'window'.
    """

    ms_refocus: float
    ms_token: float
    flops_token: float
    flops_refocus: float
    tree_bytes: int
    entries: int
    host_bytes: int
    device_bytes: int | None
    tail: str


def peak_host_bytes() -> int:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes() -> int | None:
    """Of the first device; None where it keeps no count."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


class CountedTree:
    """A tree that counts the bytes asked of it, whether a mirror of it has them or not."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self.bytes_read = 0

    def __getattr__(self, name):
        return getattr(self._tree, name)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        found = self._tree.tokens(start, stop)
        self.bytes_read += found.nbytes
        return found

    def gather(self, level: int, indices: np.ndarray) -> np.ndarray:
        found = self._tree.gather(level, indices)
        self.bytes_read += found.size * 2  # stored as bfloat16
        return found
