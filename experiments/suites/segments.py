"""Text for a measurement: streams of tokens, and segments cut out of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import text
from data.mixture import domains_of
from data.sampling import Corpus
from data.text import Document
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

PACKAGES = 12  # that text which nobody named is shared among
Streams = dict[str, np.ndarray]  # name of a package, folder or file -> its tokens


class Segments(NamedTuple):
    """Stretches of text to measure on.

    Attributes:
      tokens: int32 [n, length]. groups: [n], the package, author or file that each is of.
    """

    tokens: np.ndarray
    groups: tuple[str, ...]

    @property
    def units(self) -> np.ndarray:
        """What a bootstrap draws as one, [n]: whole groups; of a single group, its segments."""
        _, member = np.unique(self.groups, return_inverse=True)
        return member if member.max() else np.arange(len(member))

    @property
    def partners(self) -> np.ndarray:
        """For each segment the next one of another group; of a single group, the next: [n]."""
        _, member = np.unique(self.groups, return_inverse=True)
        after = np.add.outer(np.arange(len(member)), np.arange(1, len(member) + 1)) % len(member)
        other = member[after] != member[:, None]
        return np.take_along_axis(after, other.argmax(axis=1)[:, None], axis=1)[:, 0]

    @property
    def interval(self) -> str:
        """What the intervals of rows made of them are."""
        drawn = "packages or authors" if len(set(self.groups)) > 1 else "segments"
        return f"bootstrap 95 % over {drawn}"


def corpus_streams(directory: Path, vocab_size: int) -> Streams:
    """The packages of a corpus: of one part, or of the part `valid` of each domain that has one."""
    if (directory / "tokens.npy").exists():
        return _part_streams(directory, vocab_size)
    parts = [path / "valid" for path in domains_of(directory).values()]
    streams: Streams = {}
    for part in filter(Path.is_dir, parts):
        streams |= _part_streams(part, vocab_size)
    return streams


def _part_streams(directory: Path, vocab_size: int) -> Streams:
    corpus = Corpus.load(directory)
    names = [package["name"] for package in corpus.manifest["packages"]]
    used = np.unique(corpus.documents[:, 2])
    largest = int(corpus.tokens.max(initial=0))
    if largest >= vocab_size:
        raise UserError(
            f"{directory} has the token {largest}, but the vocabulary ends at {vocab_size - 1}: "
            "give the corpus made with this checkpoint's tokenizer."
        )
    streams: dict[str, list[np.ndarray]] = {}
    for package, (start, stop) in zip(used, corpus.packages, strict=True):
        author = names[package].partition("/")[0]  # of a book, whose name is author/title
        streams.setdefault(author, []).append(corpus.tokens[start:stop])
    return {name: np.concatenate(parts) for name, parts in streams.items()}


def held_out_streams(checkpoint: Path, tokens: int, tokenizer: Tokenizer) -> Streams:
    """At most about `tokens` tokens of this interpreter's packages that the checkpoint never saw,
    of no package more than its share of `PACKAGES`."""
    share = tokens // PACKAGES
    documents, _ = text.unseen_documents(checkpoint, tokens, tokenizer, share)
    return document_streams(documents, tokenizer)


def document_streams(
    documents: Iterable[Document], tokenizer: Tokenizer, unnamed: str = ""
) -> Streams:
    """Documents of a package behind each other, wherever they stand, each with its end, as corpora
    have them; packages in the order in which they first come."""
    end = np.array([tokenizer.eot_id], np.int32)
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.package, []).append(document.text)
    streams = {}
    for package, members in texts.items():
        encoded = tokenizer.encode_batch(members)
        joined = np.concatenate([part for ids in encoded for part in (ids, end)])
        streams[f"{unnamed} {package}".strip()] = joined
    return streams


def cut(streams: Streams, length: int, count: int, seed: int) -> Segments:
    """At most `count` segments that do not overlap, each within one stream, drawn at random.

    Every stream gives one before any gives a second: as many packages or authors as can be.

    Raises:
      UserError: there are fewer than two.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(streams))
    places = [
        (turn, order[number], name, int(place) * length)
        for number, (name, tokens) in enumerate(streams.items())
        for turn, place in enumerate(rng.permutation(len(tokens) // length))
    ]
    if len(places) < 2:
        raise UserError(
            f"the text has {len(places)} stretches of {length} tokens, but an interval needs two: "
            "give more text."
        )
    chosen = sorted(place[2:] for place in sorted(places)[:count])
    tokens = np.stack([streams[name][start : start + length] for name, start in chosen])
    return Segments(tokens.astype(np.int32), tuple(name for name, _ in chosen))
