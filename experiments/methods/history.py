"""The history under a comparison: its tree, the rows of its blocks, and what they are made of."""

from __future__ import annotations

import itertools
import os

import numpy as np

from experiments.methods.cost import CountedTree
from mctx.errors import UserError
from mctx.opened import Opened
from mctx.runtime import SessionConfig
from mctx.runtime.cache import BlockCache
from mctx.tree.ingest import BATCH, Blocks, Reader, tree_spec
from mctx.tree.store import Tree

_numbers = itertools.count()


class History:
    """Everything that methods may know of one history, and of no other.

    Attributes:
      tree: on disk or in memory. cache: rows of its blocks.
    """

    def __init__(self, reader: Reader, tree: Tree, cache: BlockCache | None = None):
        self.tree = CountedTree(tree)
        self._reader = reader
        self.cache = cache or BlockCache(reader, self.tree, SessionConfig.cache_bytes)
        self._means: np.ndarray | None = None

    @classmethod
    def of_tokens(cls, opened: Opened, reader: Reader, tokens: np.ndarray) -> History:
        """Ingests whole blocks into a tree that lives in this process's memory.

        A last window that is not full is padded: no block of it can see what comes after.
        """
        block = opened.model.gist.block
        if not len(tokens) or len(tokens) % block:
            raise UserError(
                f"a history must be whole blocks of {block} tokens, but has {len(tokens)}: "
                "leave what is over to the tail."
            )
        name = f"memory://methods-{os.getpid()}-{next(_numbers)}"
        tree = Tree.create(name, tree_spec(opened.model, opened.fingerprint))
        history = cls(reader, tree)
        means = [history._ingest(*piece) for piece in _pieces(tokens, opened.model.window)]
        history._means = np.concatenate(means)
        history._complete_levels()
        return history

    def means(self) -> np.ndarray:
        """Mean window state of every block's tokens, of one middle layer: [blocks, D]."""
        if self._means is None:
            tokens = self.tree.tokens(0, self.tree.length)
            pieces = _pieces(tokens, self._reader.model.window)
            self._means = np.concatenate([self._read(*piece)[1] for piece in pieces])
        return self._means

    def _read(self, start, tokens):
        """Whole blocks from token `start` on, their gists, and their mean states [n, D]."""
        model = self._reader.model
        block, size = model.gist.block, model.window
        count = len(tokens) // block
        padded = np.pad(tokens, (0, -len(tokens) % size)).astype(np.int32)
        rows, states, gists = self._reader.full_windows(padded)

        def flat(x):  # [n, blocks of a window, …] -> [blocks, …]
            x = np.asarray(x)
            return x.reshape(-1, *x.shape[2:])[:count]

        states = np.asarray(states).swapaxes(1, 2)  # [n, window, L + 1, D]
        split = flat(states.reshape(len(states), -1, block, *states.shape[2:]))
        joined = split.reshape(-1, *split.shape[2:]).swapaxes(0, 1)
        made = Blocks(start // block, *map(flat, rows), joined)
        middle = split[:, :, model.base.n_layers // 2]  # [n, K_1, D]
        return (made, flat(gists)), middle.mean(axis=1)

    def _ingest(self, start, tokens):
        (blocks, gists), means = self._read(start, tokens)
        self.tree.append(tokens, {1: gists})
        self.cache.put(blocks)
        return means

    def _complete_levels(self):
        fanouts = self.tree.spec.fanouts
        for level in range(2, len(fanouts) + 1):
            below = self.tree.count(level - 1) // fanouts[level - 1] * fanouts[level - 1]
            if below:
                children = self.tree.gather(level - 1, np.arange(below))
                gists = self._reader.pool(level, children)
                self.tree.append(np.zeros(0, np.int32), {level: gists})


def _pieces(tokens, window):
    """Some windows at a time: where they start, and their tokens."""
    step = BATCH * window
    return [(at, tokens[at : at + step]) for at in range(0, len(tokens), step)]
