"""Long texts in pieces, so that a chapter quoted in another book is found; and the command.

    python -m data.pieces --text=SOURCE --against SOURCE … --out=FILE.jsonl[.xz]

writes the documents of a source (anything that `data.text.load` reads) without what is alike to
the others, as JSON lines with `author` (the package, folder or author), `title` and `text`: a
document that is mostly alike is left out whole, of others the pieces that are and those beside.
"""

import argparse
import json
import lzma
import re
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import minhash, text
from data.written import try_folder, workers
from mctx.errors import Parser, UserError

LEAST = 1_500  # characters of a piece, but for a text's only one
TELLING = 100  # characters a paragraph needs to be a border: short ones recur by chance
ENDING = 40  # characters at its end that decide, so that a change elsewhere moves no border
EVERY = 4  # one paragraph in so many is a border
MOSTLY = 0.5  # copied characters of a document from which on all of it is left out
_PARAGRAPH = re.compile(r"\n\s*\n")


class Cut(NamedTuple):
    """A text as pieces that follow each other without a gap."""

    stops: np.ndarray  # int64 [n], characters
    signatures: np.ndarray  # uint32 [n, minhash.PERMUTATIONS]


def borders(whole: str) -> list[int]:
    """Where the pieces of a text end, some 3,000 characters each.

    Whether a paragraph ends a piece is decided by a hash of its last words, so a copied stretch is
    cut in the same places whatever stands around it.
    """
    stops, begin = [0], 0
    for gap in _PARAGRAPH.finditer(whole):
        paragraph = whole[begin : gap.start()]
        begin = gap.end()
        if len(paragraph) < TELLING or begin - stops[-1] < LEAST:
            continue
        ending = "".join(filter(str.isalnum, paragraph[-ENDING:].lower()))
        if zlib.crc32(ending.encode()) % EVERY == 0:
            stops.append(begin)
    if len(stops) > 1 and len(whole) - stops[-1] < LEAST:
        stops.pop()
    return [*stops[1:], len(whole)]


def cut(whole: str) -> Cut:
    """The pieces of a text, with their signatures."""
    stops = borders(whole)
    parts = [whole[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
    return Cut(np.array(stops), np.stack([minhash.signature(part) for part in parts]))


def copied(cuts: Sequence[Cut], staying: Sequence[bool]) -> list[np.ndarray]:
    """For each text, which of its pieces copy one of a text before it, or its own: bool [n].

    staying: of each text, whether its pieces are not dropped, whatever they copy.
    """
    sizes = [len(one.stops) for one in cuts]
    signatures = np.concatenate([one.signatures for one in cuts])
    marks = minhash.originals(signatures, np.repeat(staying, sizes)) >= 0
    return np.split(marks, np.cumsum(sizes)[:-1])


def share(one: Cut, mask: np.ndarray) -> float:
    """The share of a text's characters that stand in the masked pieces."""
    return float(np.diff(one.stops, prepend=0)[mask].sum() / max(1, one.stops[-1]))


def spread(mask: np.ndarray) -> np.ndarray:
    """The masked pieces and those beside them, in which a copied stretch begins and ends."""
    wide = np.pad(mask, 1)
    return wide[:-2] | wide[1:-1] | wide[2:]


def runs(whole: str, one: Cut, mask: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """What is left between the masked pieces: texts, each with its pieces' signatures."""
    starts = np.append(0, one.stops[:-1])
    kept = np.flatnonzero(~mask)
    groups = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1) if kept.size else []
    return [(whole[starts[g[0]] : one.stops[g[-1]]], one.signatures[g]) for g in groups]


def distinct(
    documents: Sequence[text.Document], others: Sequence[text.Document], pool: ProcessPoolExecutor
) -> list[text.Document]:
    """The documents without what is alike to `others`, to documents before them, or repeated."""
    cuts = list(pool.map(cut, [d.text for d in (*others, *documents)], chunksize=4))
    masks = copied(cuts, [i < len(others) for i in range(len(cuts))])[len(others) :]
    kept = []
    for document, one, mask in zip(documents, cuts[len(others) :], masks, strict=True):
        if share(one, mask) <= MOSTLY:
            left = "".join(run for run, _ in runs(document.text, one, spread(mask)))
            if left:
                kept.append(document._replace(text=left))
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m data.pieces", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", required=True, metavar="SOURCE", help="file, folder or package:NAME to clean")
    add("--against", required=True, nargs="+", metavar="SOURCE", help="what it must not resemble")
    add("--out", type=Path, required=True, metavar="FILE", help="a new .jsonl or .jsonl.xz")
    add("--processes", type=int, metavar="N", help="default: the cores")
    try:
        args = parser.parse_args(arguments)
        if not args.out.name.endswith((".jsonl", ".jsonl.xz")):
            raise UserError(f"Name a .jsonl or .jsonl.xz file with --out, not {args.out}.")
        try_folder(args.out.parent)
        documents = text.load(args.text)
        others = [document for source in args.against for document in text.load(source)]
        with workers(args.processes) as pool:
            kept = distinct(documents, others, pool)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draft = args.out.with_name(f".{args.out.name}")
    with lzma.open(draft, "wt") if draft.suffix == ".xz" else draft.open("w") as out:
        for package, name, left in kept:
            out.write(json.dumps({"author": package, "title": name, "text": left}) + "\n")
    draft.replace(args.out)
    before, after = (sum(len(document.text) for document in some) for some in (documents, kept))
    print(f"{args.out}: {len(kept):,} of {len(documents):,} documents, {after:,} of {before:,} "
          "characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
