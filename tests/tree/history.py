"""A history whose every token and gist is known from its position alone, and a process writing it.

Run as a module it appends to the tree at a URI for ever, one commit after another, and prints the
committed length after each: something to kill. With `bulk` behind the URI it writes small shards
ahead of their commits, and commits in the background.
"""

import sys

import numpy as np

from mctx.tree import arrays
from mctx.tree.store import Tree, TreeSpec

SPEC = TreeSpec((4, 3, 2), slots=(2, 4, 2), gist_width=8, fingerprint="models", vocab_size=1000)


def tokens(start: int, stop: int) -> np.ndarray:
    return (np.arange(start, stop) * 7919 % SPEC.vocab_size).astype(np.int32)


def gists(level: int, start: int, stop: int) -> np.ndarray:
    """Small integers: exact in bfloat16, different in every row, slot and dimension."""
    shape = arrays.row_shape(SPEC, level)
    size = shape[0] * shape[1]
    values = np.arange(start * size, stop * size) * (2 * level + 1) % 251
    return values.reshape(-1, *shape).astype(np.float32)


def append(tree: Tree, count: int) -> None:
    """`count` tokens more, with every gist that they complete."""
    length = tree.length + count
    tree.append(
        tokens(tree.length, length),
        {
            level: gists(level, tree.count(level), length // SPEC.span(level))
            for level in range(1, SPEC.levels + 1)
        },
    )


def check(tree: Tree) -> None:
    """The tree holds the history up to its length, all of it and nothing else."""
    np.testing.assert_array_equal(tree.tokens(0, tree.length), tokens(0, tree.length))
    for level in range(1, SPEC.levels + 1):
        assert tree.count(level) == tree.length // SPEC.span(level)
        stored = tree.gather(level, np.arange(tree.count(level)))
        np.testing.assert_array_equal(stored, gists(level, 0, tree.count(level)))


def main() -> None:
    uri, bulk = sys.argv[1], sys.argv[2:] == ["bulk"]
    arrays.BULK_SHARD_BYTES, arrays.BULK_CHUNK_BYTES = 2**10, 2**8
    tree = Tree.open(uri, mode="w", bulk=bulk)
    while True:
        append(tree, 1 + tree.length % (613 if bulk else 37))
        staged = tree.length
        tree.commit(wait=not bulk)
        append(tree, 5 if bulk else 0)
        tree.settle()
        print(staged, flush=True)


if __name__ == "__main__":
    main()
