"""Batches out of a corpus: a pure function of (seed, step), whoever asks and wherever it runs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.written import manifest_of
from mctx.errors import UserError

Rows = slice | np.ndarray  # of a batch: a slice, or indices
ALL_ROWS = slice(None)


class Corpus(NamedTuple):
    """A folder written by `python -m data.corpus`, tokens memory-mapped."""

    tokens: np.ndarray  # uint16 or uint32 [total]
    documents: np.ndarray  # int64 [n, 3]: start, stop, index of the package
    packages: np.ndarray  # int64 [p, 2]: start, stop; documents of a package are consecutive
    manifest: dict

    @classmethod
    def load(cls, directory: str | Path) -> "Corpus":
        """Open a corpus.

        Raises:
          UserError: the directory holds no corpus.
        """
        directory = Path(directory)
        try:
            tokens = np.load(directory / "tokens.npy", mmap_mode="r")
            documents = np.load(directory / "documents.npy")
            manifest = manifest_of(directory)
        except FileNotFoundError as error:
            raise UserError(
                f"There is no corpus in {directory}; make one with `python -m data.corpus`."
            ) from error
        first = np.flatnonzero(np.diff(documents[:, 2], prepend=-1))
        starts = documents[first, 0]
        packages = np.stack([starts, np.append(starts[1:], len(tokens))], axis=1)
        return cls(tokens, documents, packages, manifest)


def _gather(corpus: Corpus, starts: np.ndarray, length: int) -> np.ndarray:
    """Spans of tokens, int32 [len(starts), length]."""
    batch = np.empty((len(starts), length), np.int32)
    for row, start in zip(batch, starts, strict=True):
        row[:] = corpus.tokens[start : start + length]
    return batch


def windows(
    corpus: Corpus, length: int, batch: int, seed: int, step: int, rows: Rows = ALL_ROWS
) -> np.ndarray:
    """Spans of the whole stream, uniform over tokens; they may cross documents and packages.

    Args:
      length: tokens a row.
      batch: rows of the global batch.
      seed: non-negative, chooses the sequence of batches.
      step: non-negative, chooses the batch.
      rows: which rows to produce; row i is the same whatever rows it is asked with.

    Returns:
      int32 [len(range(batch)[rows]), length].

    Raises:
      UserError: the corpus is shorter than `length`.
    """
    room = len(corpus.tokens) - length + 1
    if room <= 0:
        raise UserError(f"The corpus has fewer than {length} tokens; ask for shorter windows.")
    starts = np.random.default_rng([seed, step]).integers(room, size=batch)
    return _gather(corpus, starts[rows], length)


def segments(
    corpus: Corpus, length: int, batch: int, seed: int, step: int, rows: Rows = ALL_ROWS
) -> np.ndarray:
    """Spans that stay within one package, uniform over the places where one can start.

    Arguments and result as in `windows`; packages shorter than `length` are never drawn.

    Raises:
      UserError: no package of the corpus has `length` tokens.
    """
    room = np.maximum(corpus.packages[:, 1] - corpus.packages[:, 0] - length + 1, 0)
    ends = np.cumsum(room)
    if ends[-1] == 0:
        raise UserError(f"No package has {length} tokens; ask for shorter segments.")
    draws = np.random.default_rng([seed, step]).integers(ends[-1], size=batch)[rows]
    package = np.searchsorted(ends, draws, side="right")
    starts = corpus.packages[package, 0] + draws - (ends - room)[package]
    return _gather(corpus, starts, length)


def histories(
    corpus: Corpus,
    *,
    near: int,
    far: int,
    groups: int,
    tail: int,
    reach: int,
    block: int,
    batch: int,
    seed: int,
    step: int,
    rows: Rows = ALL_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Long pasts in short rows: far stretches of a package, then what stands before its tail.

    Args:
      near, tail: tokens of the contiguous last part.
      far, groups: that many stretches of `far` tokens each, in order and without overlap, from up
        to `reach` tokens before the near part; the reach of each row is drawn log-uniformly, so
        that the middle distances are seen as well as the farthest.
      block: tokens per block, the unit of the distances.

    Returns:
      Tokens, int32 [n, groups·far + near + tail], and int32 [n, groups·far/block + near/block],
      how many blocks lie between the end of each block and the start of the tail.

    Raises:
      UserError: no package is long enough.
    """
    least = groups * far + near + tail
    ends_of = np.arange(block, near + 1, block)[::-1] - block  # distances within the near part
    room = np.maximum(corpus.packages[:, 1] - corpus.packages[:, 0] - least + 1, 0)
    upto = np.cumsum(room)
    if upto[-1] == 0:
        raise UserError(f"No package has {least} tokens; ask for shorter histories.")
    rng = np.random.default_rng([seed, step])
    draws = rng.integers(upto[-1], size=batch)
    stretch = rng.uniform(size=batch)
    slots = np.sort(rng.uniform(size=(batch, groups)), axis=1)
    package = np.searchsorted(upto, draws, side="right")
    first = corpus.packages[package, 0]
    start = first + draws - (upto - room)[package] + groups * far  # of the near part
    behind = np.minimum(start - first, groups * far * (reach / (groups * far)) ** stretch)
    slack = np.maximum(behind.astype(np.int64) - groups * far, 0)
    # Sorted offsets into the slack keep the stretches in order and apart.
    begins = (slots * (slack[:, None] + 1)).astype(np.int64)
    begins += (start - groups * far - slack)[:, None]
    begins = begins + far * np.arange(groups)
    tokens = [_gather(corpus, begins[rows, g], far) for g in range(groups)]
    tokens.append(_gather(corpus, start[rows], near + tail))
    inside = np.arange(block, far + 1, block)
    end = (start + near)[rows, None, None]
    away = (end - begins[rows, :, None] - inside) // block
    close = np.broadcast_to(ends_of // block, (away.shape[0], len(ends_of)))
    distance = np.concatenate([away.reshape(len(away), groups * len(inside)), close], axis=1)
    return np.concatenate(tokens, axis=1), distance.astype(np.int32)
