"""MinHash over word shingles: near-duplicates within a corpus, and a sketch of one that ships.

A signature is `PERMUTATIONS` minima; two signatures agree in a share of them that estimates the
Jaccard similarity of the two texts' shingle sets. All constants are fixed, so signatures made on
one machine can be compared on another.
"""

import re

import numpy as np

PERMUTATIONS = 64
SHINGLE = 5  # words
BAND_ROWS = 4  # 16 bands of 4: a pair 0.7 alike shares a band with probability 0.99
SIMILAR = 0.7

SKETCH_BYTES = 400_000
SKETCH_BANDS, SKETCH_ROWS, SKETCH_PROBES = 4, 2, 6

_WORD_BYTE = np.array([b >= 128 or chr(b).isalnum() or chr(b) == "_" for b in range(256)])
# Licence texts say nothing about a file; left in, they make short files look alike.
_HEADER = re.compile(r"\A(?:\s*#[^\n]*\n)+")


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: uint64 → well-spread uint64, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _constants(salt: int, count: int) -> np.ndarray:
    """Fixed odd uint64 numbers."""
    steps = np.arange(salt << 32, (salt << 32) + count, dtype=np.uint64)
    return _mix((steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


_LETTER = _constants(1, 64)
_PLACE = _constants(2, SHINGLE)
_FLIP, _SCALE = _constants(3, PERMUTATIONS), _constants(4, PERMUTATIONS)
_PROBE = _constants(5, SKETCH_PROBES)


def _words(text: str) -> np.ndarray:
    """Hashes uint64 [n] of the words of a text: runs of letters, digits and underscores."""
    raw = np.frombuffer(_HEADER.sub("", text).encode(), np.uint8)
    inside = np.concatenate(([False], _WORD_BYTE[raw], [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    lengths = edges[1::2] - edges[::2]
    if not lengths.size:
        return np.zeros(0, np.uint64)
    letters = raw[_WORD_BYTE[raw]].astype(np.uint64)
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(letters.size) - np.repeat(firsts, lengths)
    return np.add.reduceat((letters + np.uint64(1)) * _LETTER[within % _LETTER.size], firsts)


def signature(text: str) -> np.ndarray:
    """MinHash signature, uint32 [PERMUTATIONS], of the shingles of `SHINGLE` words of a text."""
    words = _words(text)
    words = np.concatenate((words, np.zeros(max(0, SHINGLE - words.size), np.uint64)))
    count = words.size - SHINGLE + 1
    shingles = _mix(sum(words[i : i + count] * _PLACE[i] for i in range(SHINGLE)))
    minima = [((shingles ^ f) * s).min() for f, s in zip(_FLIP, _SCALE, strict=True)]
    return (np.array(minima) >> np.uint64(32)).astype(np.uint32)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures [..., PERMUTATIONS]; sd ≤ 0.063."""
    return np.mean(a == b, axis=-1)


def _band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One uint64 key a band, [n, bands]; equal exactly when the band's `rows` minima are."""
    cells = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), cells.shape[:2])
    for row in range(rows):
        keys = _mix(keys * np.uint64(0x9E3779B97F4A7C15) + cells[:, :, row])
    return keys


def originals(signatures: np.ndarray, staying: np.ndarray | None = None) -> np.ndarray:
    """For each row of signatures [n, PERMUTATIONS], the row it copies: int64 [n], -1 for none.

    Rows are taken in order of precedence. A row is a copy if an earlier row that is not itself a
    copy is at least `SIMILAR` to it, so what is left after dropping copies holds no such pair
    (but for pairs that share no band). What copies a row of `staying` [n] is one in any case: these
    are not dropped, as what is held out is not.
    """
    keys = _band_keys(signatures, PERMUTATIONS // BAND_ROWS, BAND_ROWS)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = (counts[inverse] > 1).reshape(keys.shape)
    found = np.full(len(signatures), -1)
    rows_with: dict[int, list[int]] = {}
    for row in np.flatnonzero(shared.any(axis=1)):
        mine = [rows_with.setdefault(int(key), []) for key in keys[row, shared[row]]]
        candidates = np.array(sorted(set().union(*mine)), int)
        alike = similarity(signatures[candidates], signatures[row]) >= SIMILAR
        if alike.any():
            found[row] = candidates[alike.argmax()]
            if staying is None or not staying[row]:
                continue
        for rows in mine:
            rows.append(row)
    return found


def _sketch_bits(signatures: np.ndarray, size: int) -> np.ndarray:
    """Positions in a sketch of `size` bytes, int64 [n, SKETCH_BANDS, SKETCH_PROBES]."""
    keys = _band_keys(signatures, SKETCH_BANDS, SKETCH_ROWS)
    return (_mix(keys[..., None] * _PROBE) % np.uint64(size * 8)).astype(np.int64)


def sketch(signatures: np.ndarray) -> np.ndarray:
    """A Bloom filter, uint8 [SKETCH_BYTES], of the first bands of signatures [n, PERMUTATIONS].

    Small enough to ship with a checkpoint, so that its users can tell which of their own files
    it was trained on. The sketch of two corpora is the bitwise or of theirs.
    """
    bits = np.zeros(SKETCH_BYTES * 8, bool)
    bits[_sketch_bits(signatures, SKETCH_BYTES)] = True
    return np.packbits(bits)


def in_sketch(filter_bytes: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Whether texts with these signatures, or near-duplicates, are in the sketch: bool [n].

    Always true of a text that is in it; of a text 0.7 / 0.8 / 0.9 alike, with probability
    0.93 / 0.98 / 0.999; of an unrelated text, in a few per cent at 80,000 texts. Sketches of any
    size can be asked.
    """
    where = _sketch_bits(signatures, filter_bytes.size)
    hits = filter_bytes[where >> 3] >> (7 - (where & 7)).astype(np.uint8) & 1
    return hits.all(axis=-1).any(axis=-1)
