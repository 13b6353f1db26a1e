"""A history whose every row says which edition it is of, and a process that writes it.

    python -m experiments.bench.known URI SEED

Waits for a line on standard input; then appends and replaces for ever, a commit at a time, and
prints the committed length and edition after each, ended by a full stop: something to kill.

Documents are of two blocks. All tokens of version v of the document at block b are v + b modulo
the vocabulary; a block's gist is its version modulo 128 in every place, and a node's above is the
sum of the two below it, modulo 128: whole numbers below 256, which bfloat16 keeps.
"""

from __future__ import annotations

import sys

import numpy as np

from mctx.tree.documents import Span
from mctx.tree.store import Change, Tree, TreeSpec

KNOWN = TreeSpec((4, 2, 2), slots=1, gist_width=8, fingerprint="known", vocab_size=1000)
BLOCK, MODULUS = KNOWN.fanouts[0], 128
DOCUMENT = 2  # blocks


def _rows(level: int, values: np.ndarray) -> np.ndarray:
    return np.repeat(values % MODULUS, KNOWN.gist_width).reshape(-1, 1, KNOWN.gist_width)


def _tokens(block: int, version: int) -> np.ndarray:
    return np.full(DOCUMENT * BLOCK, (version + block) % KNOWN.vocab_size, np.int32)


def _write(tree: Tree, first: int, version: int) -> None:
    """A version of the document at block `first`, and its ancestors, in one commit."""
    changes = [
        Change(0, first * BLOCK, DOCUMENT * BLOCK, _tokens(first, version)),
        Change(1, first, DOCUMENT, _rows(1, np.full(DOCUMENT, version))),
    ]
    below, start = np.full(DOCUMENT, version % MODULUS), first
    for level in range(2, KNOWN.levels + 1):
        node = start // 2
        if 2 * node + 2 > max(tree.count(level - 1), start + len(below)):
            break
        both = np.zeros(2, int)
        for i, child in enumerate((2 * node, 2 * node + 1)):
            known = start <= child < start + len(below)
            both[i] = below[child - start] if known else _value(tree, level - 1, child)
        below, start = np.array([both.sum() % MODULUS]), node
        changes.append(Change(level, node, 1, _rows(level, below)))
    name = f"document {first}"
    span = Span(name, version, first * BLOCK, (first + DOCUMENT) * BLOCK, DOCUMENT * BLOCK)
    tree.stage(changes, tree.documents.with_span(span))
    tree.commit()


def _value(tree: Tree, level: int, index: int) -> int:
    return int(tree.gather(level, np.array([index]))[0, 0, 0])


def check(tree: Tree, first: int, last: int) -> bool:
    """Whether blocks [first, last), whole documents, and the gists over them are of one state."""
    tokens = tree.tokens(first * BLOCK, last * BLOCK).reshape(-1, BLOCK)
    spans = [tree.documents[f"document {at}"] for at in range(first, last, DOCUMENT)]
    versions = np.repeat([span.version for span in spans], DOCUMENT)
    starts = np.repeat(np.arange(first, last, DOCUMENT), DOCUMENT)
    good = (tokens == ((versions + starts) % KNOWN.vocab_size)[:, None]).all()
    below = versions % MODULUS
    for level in range(1, KNOWN.levels + 1):
        size = 2 ** (level - 1)
        low, high = -(-first // size), min(last // size, tree.count(level))
        if low >= high:
            break
        if level > 1:
            offset = 2 * low - -(-first // (size // 2))
            below = below[offset:][: 2 * (high - low)].reshape(-1, 2).sum(axis=1) % MODULUS
        found = tree.gather(level, np.arange(low, high))
        good &= (found == below[: high - low, None, None]).all()
    return bool(good)


def check_all(tree: Tree) -> bool:
    return check(tree, 0, tree.blocks)


def check_some(tree: Tree, rng: np.random.Generator) -> bool:
    """A stretch by chance, and the newest."""
    count = tree.blocks // DOCUMENT
    if not count:
        return True
    low = int(rng.integers(0, count)) * DOCUMENT
    newest = max(0, count - 8) * DOCUMENT
    return check(tree, low, min(low + 16, tree.blocks)) and check(tree, newest, tree.blocks)


def main() -> None:
    uri, seed = sys.argv[1:]
    rng = np.random.default_rng(int(seed))
    sys.stdin.readline()
    tree = Tree.open(uri, mode="w")
    while True:
        if tree.blocks and rng.random() < 0.5:
            first = int(rng.integers(0, tree.blocks // DOCUMENT)) * DOCUMENT
            _write(tree, first, tree.documents[f"document {first}"].version + 1)
        else:
            _write(tree, tree.blocks, 1)
        print(tree.length, tree.head.edition, end=".\n", flush=True)


if __name__ == "__main__":
    main()
