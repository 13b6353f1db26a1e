"""Build corpora to train on and to look at: code, books, and tasks made for the purpose.

    python -m data.corpus --out=DIR [--books=FILE --books-valid=FILE] [--tasks=TOKENS]

writes a folder for each domain: `DIR/code/{train,valid}`, out of installed packages or a folder of
text; `DIR/books/{train,valid}`, out of a `.jsonl(.xz)` file of `author`, `title` and `text`, or a
folder; `DIR/tasks/train`, samples of the training split of `data.tasks`. Each part has

    tokens.npy      uint16 (uint32 past 65,536 ids), flat; every document ends with `<eot>`
    documents.npy   int64 [n, 3]: start, stop, index of the package; packages are consecutive
    manifest.json   what is in it (packages, books), and what was left out
    sketch.npy      which texts are in it, in 400 KB (`data.minhash.sketch`)
    tokenizer.json  the same in all

Vendored copies, generated files, tables and near-duplicates are left out, and so is all that is
alike to a held-out package (`data.heldout`), the standard library, a held-out book, or is by the
author of one. The same sources give the same corpus.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import books, bpe, exercises, packages
from data.heldout import TEST, VALIDATION
from data.written import Part, console, try_folder, workers, write
from mctx.errors import Parser, UserError
from mctx.tokenizer import Tokenizer

TOKENIZER_SAMPLE = 60_000_000  # characters: enough for 8,192 ids, and trained in seconds
SLICE = 10_000  # characters of a long text that are sampled together
LENGTHS = (96, 1_024)  # least and most tokens of a task
LEAST = {"max_tokens": 1, "tasks": 0, "vocab_size": 1, "processes": 1}  # that a flag may say


class Books(NamedTuple):
    """Where books come from; each as `data.text.load` reads it."""

    train: Path
    valid: Path | None = None
    held_out: tuple[Path, ...] = ()


def slices(texts: Sequence[str]) -> list[str]:
    """Texts, the long ones in slices of `SLICE` characters."""
    return [text[i : i + SLICE] for text in texts for i in range(0, len(text), SLICE)]


def tokenizer_sample(domains: Sequence[Sequence[str]]) -> list[str]:
    """As many characters of each domain, out of all its texts: `TOKENIZER_SAMPLE` at most."""
    most = min(sum(map(len, texts)) for texts in domains)
    share = min(TOKENIZER_SAMPLE // len(domains), most)
    chosen = []
    for texts in map(slices, domains):
        order = np.random.default_rng(0).permutation(len(texts))
        ends = np.cumsum([len(texts[i]) for i in order])
        chosen += [texts[i] for i in order[: np.searchsorted(ends, share) + 1]]
    return chosen


def build(
    out: Path,
    place: Path | None = None,
    held_out: Sequence[str] = TEST,
    validation: Sequence[str] = VALIDATION,
    max_tokens: int | None = None,
    vocab_size: int = 8_192,
    tokenizer: Path | None = None,
    processes: int | None = None,
    books_from: Books | None = None,
    task_tokens: int = 0,
    task_lengths: tuple[int, int] = LENGTHS,
) -> dict[str, int]:
    """Build the domains in `out`, each with `train` and, where there is any, `valid`.

    Args:
      out: directory to write to; made if need be.
      place: a site-packages folder or a folder of text; None for this interpreter's packages.
      held_out: names of packages that no corpus may hold, nor near-copies of their files;
        `python` is the standard library.
      validation: names of packages that make up the validation corpus of code.
      max_tokens: about how many tokens of code to keep; None for all.
      vocab_size: ids of the tokenizer to train, on as much of each domain.
      tokenizer: a tokenizer to use instead of training one.
      processes: how many to work with; None for one a core.
      books_from: books, if there are to be any.
      task_tokens: about how many tokens of tasks to make; 0 for none.
      task_lengths: least and most tokens of a task.

    Returns:
      tokens written, by domain and part: `code/train` …

    Raises:
      UserError: `out` cannot be made, a source or `tokenizer` does not exist, or a domain has
        nothing to train on.
    """
    try_folder(out)
    ready = Tokenizer.load(tokenizer) if tokenizer else None
    with workers(processes) as pool:
        domains = {"code": packages.gather(place, held_out, validation, max_tokens, pool)}
        if books_from:
            domains["books"] = books.gather(*books_from, pool)
        for name, parts in domains.items():
            if not parts["train"].documents:
                raise UserError(f"No text is fit to train on in {name}; name a larger source.")
        texts = [[d.text for d in parts["train"].documents] for parts in domains.values()]
        if ready is None:
            sample = tokenizer_sample(texts)
            with console.status(f"training a tokenizer of {vocab_size} ids"):
                ready = bpe.train(sample, vocab_size)
        written = write_domains(out, domains, ready, pool)
        if task_tokens:
            hay = [text for some in texts for text in slices(some)]
            there = out / "tasks/train"
            written["tasks/train"] = exercises.write(
                there, task_tokens, task_lengths, hay, ready, 0, pool
            )
    for name, tokens in written.items():
        console.print(f"{out / name}: {tokens:,} tokens")
    return written


def write_domains(
    out: Path, domains: dict[str, dict[str, Part]], tokenizer: Tokenizer, pool: ProcessPoolExecutor
) -> dict[str, int]:
    """Write every part that has documents; returns tokens by domain and part."""
    return {
        f"{domain}/{name}": write(out / domain / name, part, tokenizer, pool)
        for domain, parts in domains.items() for name, part in parts.items() if part.documents
    }


def flags() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m data.corpus", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory to write the domains to")
    add("--packages", type=Path, metavar="PATH",
        help="site-packages folder or folder of text (default: this interpreter's packages)")
    add("--exclude", nargs="*", default=[], metavar="NAME", help="more packages to hold out")
    add("--exclude-file", type=Path, metavar="FILE", help="a file of such names, one a line")
    add("--validation", nargs="*", default=VALIDATION, metavar="NAME",
        help="packages of the validation corpus (default: those of data/heldout.py)")
    add("--max-tokens", type=int, metavar="N", help="keep about this many tokens of code")
    add("--books", type=Path, metavar="SOURCE", help="books to train on: .jsonl(.xz) or a folder")
    add("--books-valid", type=Path, metavar="SOURCE", help="books to look at meanwhile")
    add("--books-held-out", type=Path, nargs="*", default=[], metavar="SOURCE",
        help="books whose authors and text must not be in either")
    add("--tasks", type=int, default=0, metavar="TOKENS", help="make about this many of tasks")
    add("--task-lengths", type=int, nargs=2, default=LENGTHS, metavar=("LEAST", "MOST"),
        help=f"tokens of a task (default: {LENGTHS[0]} {LENGTHS[1]})")
    add("--vocab-size", type=int, default=8_192, metavar="N")
    add("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json; train none")
    add("--processes", type=int, metavar="N", help="processes to work with (default: the cores)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        args = flags().parse_args(arguments)
        for name, least in LEAST.items():
            given = getattr(args, name)
            if given is not None and given < least:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is a number from {least}, not {given}; give another one.")
        if args.exclude_file and not args.exclude_file.is_file():
            raise UserError(f"There is no file {args.exclude_file}; name one with --exclude-file.")
        if args.books is None and (args.books_valid or args.books_held_out):
            raise UserError("Held-out books need books to train on: name some with --books.")
        more = args.exclude_file.read_text().split() if args.exclude_file else []
        given = Books(args.books, args.books_valid, tuple(args.books_held_out))
        build(
            args.out, args.packages, (*TEST, *args.exclude, *more), args.validation,
            args.max_tokens, args.vocab_size, args.tokenizer, args.processes,
            given if args.books else None, args.tasks, tuple(args.task_lengths),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
