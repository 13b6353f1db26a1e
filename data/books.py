"""The domain `books`: long texts by author and title, without held-out authors or quotations."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from data import pieces, text
from data.packages import HELD_OUT, TRAIN, VALID
from data.written import Document, Part, console

YEAR = re.compile(r"[12]\d{3}")  # beside a name: of a life
AUTHOR, COPY, QUOTED = "held-out author", "copied text", "copied pieces and those beside"


class Book(NamedTuple):
    """A text on its way into a corpus."""

    name: str
    author: str
    text: str
    group: int  # HELD_OUT, VALID or TRAIN


def author_key(name: str) -> str:
    """An author however spelled: `R. D. Blackmore` and `R.D. blackmore` are one, and so are
    `Brontë, Charlotte, 1816-1855` and `Charlotte Bronte`."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(one for one in plain if not unicodedata.combining(one) and one not in "'’")
    words = re.findall(r"[^\W_]+", letters)
    return " ".join(sorted(word for word in words if not YEAR.fullmatch(word)))


def read(groups: Sequence[tuple[int, Path]]) -> list[Book]:
    """Every text of (group, source) pairs, in order of group, author and title."""
    found = [
        Book("/".join(filter(None, (package, name))), package, whole, group)
        for group, place in groups for package, name, whole in text.load(place)
    ]
    return sorted(found, key=lambda book: (book.group, book.name))


def without_held_authors(found: list[Book]) -> tuple[list[Book], Counter]:
    """Drop books by authors of an earlier group; says how many of each group were."""
    first: dict[str, int] = {}
    for book in found:  # in order of group
        first.setdefault(author_key(book.author), book.group)
    first.pop("", None)  # nobody knows who wrote these
    kept = [book for book in found if first.get(author_key(book.author), book.group) == book.group]
    return kept, Counter(b.group for b in found) - Counter(b.group for b in kept)


def gather(
    train: Path, validation: Path | None, held_out: Sequence[Path], pool: ProcessPoolExecutor
) -> dict[str, Part]:
    """The parts `train` and `valid` of sources that `data.text.load` reads.

    Out of `train` go the authors of `validation` and `held_out`, and what is alike to them or to
    a text before it: whole texts that are mostly copied, of others the pieces that are and those
    beside them. A text that lost pieces goes on as several documents of one package.
    """
    groups = [*((HELD_OUT, place) for place in held_out), (TRAIN, train)]
    found = read([*groups, *([(VALID, validation)] if validation else [])])
    found, authors = without_held_authors(found)
    cuts = pool.map(pieces.cut, [book.text for book in found])
    cuts = list(track(cuts, "cutting books", len(found), console=console))
    masks = pieces.copied(cuts, [book.group == HELD_OUT for book in found])
    sources = {"held_out": [str(place.name) for place in held_out],
               "validation": [validation.name] if validation else []}
    parts = {}
    for name, group in (("train", TRAIN), ("valid", VALID)):
        mine = [(b, c, m) for b, c, m in zip(found, cuts, masks, strict=True) if b.group == group]
        kept = [
            (b, c, pieces.spread(m)) for b, c, m in mine if pieces.share(c, m) <= pieces.MOSTLY
        ]
        dropped = {AUTHOR: authors[group], COPY: len(mine) - len(kept),
                   QUOTED: int(np.sum([m.sum() for _, _, m in kept]))}
        documents = [
            Document(book.name, "", left, signatures)
            for book, one, mask in kept for left, signatures in pieces.runs(book.text, one, mask)
        ]
        dropped = {why: count for why, count in dropped.items() if count}
        console.print(f"books/{name}: {len(kept)} texts; left out: {dropped or 'nothing'}")
        parts[name] = Part(documents, {"dropped": dropped, **sources})
    return parts
