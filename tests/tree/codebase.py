"""Trees of documents, made by a reader without a model, and what they must hold.

A gist is a checksum of the tokens of its window up to its block's end, or of the gists below: so a
gist that was made from anything else, or was not made anew, is another one.
"""

import sys
import zlib
from types import SimpleNamespace

import numpy as np

from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree, TreeSpec

BLOCK, WINDOW, PAD = 4, 8, 7
SPEC = TreeSpec((BLOCK, 3, 2), slots=1, gist_width=4, fingerprint="sums", vocab_size=1000)


def checksum(*parts) -> np.ndarray:
    """[1, 4] of small integers, exact in bfloat16 and never all zero."""
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part, np.float32).tobytes(), value)
    return np.frombuffer((value | 1).to_bytes(4, "little"), np.uint8)[None].astype(np.float32)


class Reader:
    """As `mctx.tree.ingest.Reader`; counts the windows it reads."""

    def __init__(self):
        self.model = SimpleNamespace(window=WINDOW, gist=SimpleNamespace(block=BLOCK))
        self.windows = self.pooled = 0

    def full_windows(self, tokens):
        windows = tokens.reshape(-1, WINDOW)
        self.windows += len(windows)
        ends = range(BLOCK, WINDOW + 1, BLOCK)
        gists = np.array([[checksum(window[:end]) for end in ends] for window in windows])
        rows = np.zeros((len(windows), WINDOW // BLOCK, 1, BLOCK, 1, 1), np.float32)
        return (rows, rows), np.zeros((len(windows), 2, WINDOW, 1), np.float32), gists

    def window_gists(self, tokens):
        return self.full_windows(tokens)[2]

    def empty_window(self):
        return np.zeros(0, np.int32)

    def grow(self, tokens, before, length):
        seen = np.concatenate([before[:length], tokens])
        ends = range(length + BLOCK, len(seen) + 1, BLOCK)
        rows = np.zeros((len(tokens) // BLOCK, 1, BLOCK, 1, 1), np.float32)
        states = np.zeros((2, len(tokens), 1), np.float32)
        return seen, (rows, rows), states, np.array([checksum(seen[:end]) for end in ends])

    def pool(self, level, children):
        self.pooled += len(children) // SPEC.fanouts[level - 1]
        families = children.reshape(-1, SPEC.fanouts[level - 1], *children.shape[1:])
        return np.array([checksum(level, family) for family in families]).reshape(-1, 1, 4)


class History:
    """What a tree should hold: runs of text, documents and dead spans, in order."""

    def __init__(self, items=()):
        self.items = list(items)  # (name, version, tokens, blocks); name None: text; "": dead

    def copy(self) -> "History":
        """As committed: what waits for a block is not."""
        return History(
            (name, version, tokens[: len(tokens) // BLOCK * BLOCK] if name is None else tokens, n)
            for name, version, tokens, n in self.items
        )

    def find(self, name: str) -> int | None:
        return next((i for i, item in enumerate(self.items) if item[0] == name), None)

    def write(self, tokens) -> None:
        if not self.items or self.items[-1][0] is not None:
            self.items.append((None, 0, [], None))
        name, version, old, _ = self.items[-1]
        self.items[-1] = name, version, [*old, *tokens], None

    def add(self, name: str, tokens, version=1) -> None:
        if self.items and self.items[-1][0] is None:
            text = self.items[-1][2]
            text = [*text, *[PAD] * (-len(text) % BLOCK)]
            self.items[-1] = None, 0, text, None
        blocks = -(-len(tokens) // WINDOW) * WINDOW // BLOCK
        self.items.append((name, version, list(tokens), blocks))

    def replace(self, name: str, tokens) -> None:
        at = self.find(name)
        _, version, _, blocks = self.items[at]
        if len(tokens) <= blocks * BLOCK:
            self.items[at] = name, version + 1, list(tokens), blocks
        else:
            self.delete(name)
            self.add(name, tokens, version + 1)

    def delete(self, name: str) -> None:
        at = self.find(name)
        self.items[at] = "", 0, [], self.items[at][3]

    def blocks(self) -> list[tuple | None]:
        """Of every block its tokens and gist, None where it is dead."""
        made = []
        for name, _, tokens, blocks in self.items:
            if name is not None:
                tokens = [*tokens, *[PAD] * (-len(tokens) % BLOCK)]
            whole = np.array(tokens[: len(tokens) // BLOCK * BLOCK], np.int32)
            for at in range(0, len(whole), BLOCK):
                window = whole[at // WINDOW * WINDOW : at + BLOCK]
                made.append((whole[at : at + BLOCK], checksum(window)))
            made += [None] * ((blocks or 0) - len(whole) // BLOCK)
        return made

    def check(self, tree) -> None:
        blocks = self.blocks()
        assert tree.length == len(blocks) * BLOCK
        nothing = np.zeros(BLOCK, np.int32), None
        tokens = [(block or nothing)[0] for block in blocks]
        np.testing.assert_array_equal(
            tree.tokens(0, tree.length), np.concatenate([np.zeros(0, np.int32), *tokens])
        )
        dead = np.repeat(False, len(blocks))
        for start, stop in tree.dead:
            dead[start:stop] = True
        assert dead.tolist() == [block is None for block in blocks]
        below = [block and block[1] for block in blocks]
        for level in range(1, SPEC.levels + 1):
            if level > 1:
                below = above(level, below)
            assert tree.count(level) == len(below)
            zero = np.zeros((1, 4), np.float32)
            wanted = np.array([zero if gist is None else gist for gist in below])
            got = tree.gather(level, np.arange(len(below)))
            np.testing.assert_array_equal(got, wanted.reshape(-1, 1, 4))
        names = {item[0]: item for item in self.items if item[0]}
        assert set(tree.documents) == set(names)
        for name, (_, version, text, size) in names.items():
            span = tree.documents[name]
            assert (span.version, span.length) == (version, len(text))
            assert span.stop - span.start == size * BLOCK
            np.testing.assert_array_equal(tree.tokens(span.start, span.start + len(text)), text)


def above(level: int, below: list) -> list:
    """Gists of complete families: the live members stand in, in turn, for the dead ones."""
    made, k = [], SPEC.fanouts[level - 1]
    for at in range(0, len(below) // k * k, k):
        family = below[at : at + k]
        live = [gist for gist in family if gist is not None]
        turn = iter(live * k)
        whole = [next(turn) if gist is None else gist for gist in family] if live else []
        made.append(checksum(level, np.array(whole)) if live else None)
    return made


def tokens_of(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, SPEC.vocab_size, length).astype(np.int32)


def checked(tree) -> None:
    """The tree is one that `main` may have committed: all documents are of one generation."""
    history = History()
    spans = [tree.documents[name] for name in tree.documents]
    assert {span.version for span in spans} <= {1} or len({s.version for s in spans}) == 1
    for span in tree.documents.spans:
        seed = 1000 * span.version + int(span.name or 0)
        text = tokens_of(seed, 5 + seed % 12) if span.name else ()
        blocks = (span.stop - span.start) // BLOCK
        history.items.append((span.name, span.version, list(text), blocks))
        assert history.items[-1][3] * BLOCK == span.stop - span.start
    history.check(tree)


def main() -> None:
    """Replaces all three documents at once, for ever, and prints how often: something to kill."""
    tree = Tree.open(sys.argv[1], mode="w")
    ingest = Ingest(Reader(), tree, pad=PAD)
    while True:
        for name in "123":
            version = tree.documents[name].version + 1 if name in tree.documents else 1
            seed = 1000 * version + int(name)
            put = ingest.replace_document if version > 1 else ingest.add_document
            put(name, tokens_of(seed, 5 + seed % 12))
        if version % 5 == 0:
            tree.commit()
            from mctx.tree.compact import compact

            compact(tree, grace=0.2)
        else:
            tree.commit(wait=version % 2 == 0)
        print(version, flush=True)


if __name__ == "__main__":
    main()
