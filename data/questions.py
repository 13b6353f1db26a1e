"""Histories with a question at their end, for the lens: which blocks hold the answer is known.

    python -m data.questions --out=DIR --tokenizer=FILE --count=N [--length=6144]
        [--split=train|validation] [--hay DIR …]

writes samples of the families of `data.tasks`, in words of their training split alone:

    tokens.npy      uint16 (uint32 past 65,536 ids) [N, length + tail]: the history, which ends
                    where the answer starts; then the answer, and the end of text over and over
    support.npy     bool [N, length / block]: the blocks that hold what must be known
    manifest.json   how they were made
    tokenizer.json  whose ids they are

`CORPUS/questions/train` and `CORPUS/questions/valid` are where `experiments.train` looks for them.
Questions for validation have other seeds. Half of what is hidden in noise is hidden in the tokens
of the corpora named by `--hay` instead (folders as `CORPUS/code/train`), if there are any. A sample
depends on the seed and its number alone.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from data.sampling import ALL_ROWS, Corpus, Rows
from data.tasks.haystack import Haystack, of_tokens, open_haystack
from data.tasks.sample import FAMILIES, encoder_of, make
from data.written import (
    begin,
    console,
    dtype_of,
    loaded,
    manifest_of,
    put,
    try_folder,
    workers,
)
from mctx.errors import Parser, UserError
from mctx.tokenizer import Tokenizer

ASKED = (
    "kv", "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "distractors", "vt", "facts_1",
    "facts_2",
)  # families whose support is a part of the text
SEEDS = {"train": 0, "validation": 1}
FARTHEST = 512  # times as far as it stands may a block pretend to be
AT_ONCE = 64  # samples that a process makes at a time
STRETCHES, STRETCH = 64, 16_384  # of a corpus that are hay, and tokens of each


class Making(NamedTuple):
    """How samples are made.

    Attributes:
      tokenizer: a folder. hay: folders of corpora.
      length, tail, block: tokens.
    """

    tokenizer: Path
    length: int
    tail: int
    block: int
    seed: int
    hay: tuple[Path, ...] = ()


class Questions(NamedTuple):
    """A folder written by this command; tokens memory-mapped."""

    tokens: np.ndarray  # [N, length + tail]
    support: np.ndarray  # bool [N, blocks]
    manifest: dict

    @classmethod
    def load(cls, directory: str | Path) -> "Questions":
        """Raises UserError where there are none."""
        directory = Path(directory)
        try:
            tokens = np.load(directory / "tokens.npy", mmap_mode="r")
            support = np.load(directory / "support.npy")
            manifest = manifest_of(directory)
        except FileNotFoundError as error:
            raise UserError(
                f"There are no questions in {directory}; make some with `python -m data.questions`."
            ) from error
        return cls(tokens, support, manifest)

    def draw(
        self, *, length: int, tail: int, block: int, batch: int, seed: int, step: int,
        rows: Rows = ALL_ROWS,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch of questions: row i is the same whatever rows it is asked with.

        Args:
          length, tail, block: tokens of a history, of what follows, and of a block.

        Returns:
          Tokens, int32 [n, length + tail]; how many blocks lie between the end of each block and
          the answer, as far as the row pretends, int32 [n, length / block]: each row stretches
          its distances by a factor that is log-uniform up to `FARTHEST`, so that what is far is
          asked for too; and the support, bool [n, length / block].

        Raises:
          UserError: the questions have another length or block, or a shorter tail.
        """
        made = self.manifest["length"], self.manifest["block"]
        if made != (length, block) or self.manifest["tail"] < tail:
            raise UserError(
                f"The questions are of {made[0]} tokens in blocks of {made[1]}, not {length} in "
                f"{block}, or have no {tail} behind: make others with `python -m data.questions "
                f"--length={length} --block={block} --tail={tail}`."
            )
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(len(self.tokens), size=batch)[rows]
        factor = FARTHEST ** rng.uniform(size=batch)[rows]
        away = np.arange(length // block)[::-1] * factor[:, None]
        tokens = self.tokens[chosen][:, : length + tail].astype(np.int32)
        return tokens, away.astype(np.int32), self.support[chosen]


def question(
    tokenizer: Tokenizer, how: Making, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample `number`: tokens, int32 [length + tail], and support, bool [length / block]."""
    rng = np.random.default_rng([how.seed, number])
    family = str(rng.choice(ASKED))
    hay = _haystack(tokenizer, FAMILIES[family].haystack)
    if how.hay and hay.name == "noise" and rng.random() < 0.5:
        hay = _hay(tokenizer, how.hay[rng.integers(len(how.hay))])
    # What is made is one token longer than whole blocks; the first has to go.
    asked = make(
        family, tokenizer, how.length + 1, int(rng.integers(2**31)), haystack=hay, split="train",
        block=how.block,
    )
    cut = len(asked.prompt) - how.length
    support = np.zeros(how.length // how.block, bool)
    for start, stop in asked.support:
        support[max(start - cut, 0) // how.block : -(-(stop - cut) // how.block)] = True
    tail = np.full(how.tail, tokenizer.eot_id, np.int32)
    answer = asked.continuation[: how.tail]
    tail[: len(answer)] = answer
    return np.concatenate([asked.prompt[cut:], tail]), support


@lru_cache(maxsize=4)
def _haystack(tokenizer: Tokenizer, name: str) -> Haystack:
    return open_haystack(encoder_of(tokenizer), name, "train")


@lru_cache(maxsize=8)
def _hay(tokenizer: Tokenizer, directory: Path) -> Haystack:
    """About a million tokens of a corpus, from all over it."""
    corpus = Corpus.load(directory)
    if corpus.manifest["tokenizer"] != tokenizer.fingerprint:
        raise UserError(f"{directory} has another tokenizer; name a corpus made with this one.")
    starts = np.linspace(0, max(len(corpus.tokens) - STRETCH, 0), STRETCHES).astype(int)
    tokens = [corpus.tokens[start : start + STRETCH] for start in np.unique(starts)]
    return of_tokens(encoder_of(tokenizer), np.concatenate(tokens).astype(np.int32), str(directory))


def _make(how: Making, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = loaded(how.tokenizer)
    tokens, support = zip(*(question(tokenizer, how, i) for i in range(first, stop)), strict=True)
    return np.stack(tokens).astype(dtype_of(tokenizer)), np.stack(support)


def write(
    out: Path, tokenizer: Tokenizer, count: int, *, split: str = "train", length: int = 6144,
    tail: int = 129, block: int = 32, hay: Sequence[Path] = (), processes: int | None = None,
) -> None:
    """Writes `count` samples of a split to a folder, made if need be.

    Raises:
      UserError: the length is not one of whole blocks, or too short for a sample; a corpus of
        `hay` is missing or has another tokenizer.
    """
    if length % block or count < 1:
        raise UserError(f"Ask for one sample or more, of whole blocks of {block} tokens.")
    try_folder(out)
    begin(out, tokenizer)
    how = Making(out, length, tail, block, SEEDS[split], tuple(hay))
    firsts = range(0, count, AT_ONCE)
    stops = [min(first + AT_ONCE, count) for first in firsts]
    with workers(processes) as pool:
        made = pool.map(partial(_make, how), firsts, stops)
        parts = list(track(made, f"making {split} questions", len(firsts), console=console))
    tokens, support = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    manifest = {
        "count": count, "split": split, "length": length, "tail": tail, "block": block,
        "seed": how.seed, "families": ASKED, "hay": [str(one) for one in hay],
        "tokenizer": tokenizer.fingerprint,
    }
    put(out, {"tokens": tokens, "support": support}, manifest)
    console.print(f"{out}: {count:,} questions of {length:,} tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m data.questions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory to write to")
    add("--tokenizer", type=Path, required=True, help="a tokenizer.json, or a folder with one")
    add("--count", type=int, required=True, metavar="N", help="how many samples to make")
    add("--split", choices=SEEDS, default="train")
    add("--length", type=int, default=6144, metavar="N", help="tokens of a history")
    add("--tail", type=int, default=129, metavar="N", help="tokens kept behind it")
    add("--block", type=int, default=32, metavar="N", help="tokens of a block")
    add("--hay", type=Path, nargs="*", default=[], metavar="DIR", help="parts of corpora")
    add("--processes", type=int, metavar="N", help="processes to work with (default: the cores)")
    try:
        args = parser.parse_args(arguments)
        write(
            args.out, Tokenizer.load(args.tokenizer), args.count, split=args.split,
            length=args.length, tail=args.tail, block=args.block, hay=args.hay,
            processes=args.processes,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
