"""What needles are hidden in: noise, one passage over and over, or any text; tokenised once."""

import functools
from typing import NamedTuple

import numpy as np

from data import text
from data.tasks.assembly import Encoder
from data.tasks.words import Split, split_of, vocabulary
from mctx.errors import UserError

_POOL = 4096  # sentences of noise that a tokenizer encodes once
_PASSAGE = (
    " The road is long.", " The night is clear.", " A bird sings and stops.", " We walk a little.",
    " Then we walk back again.",
)


class Haystack(NamedTuple):
    """Runs of tokens to draw hay from.

    Sentences (`ordered` false) are drawn one by one at random; text is drawn as one stretch that
    begins anywhere and goes round at its end.
    """

    name: str
    tokens: np.ndarray  # int32 [t]
    cuts: np.ndarray  # int64 [c], rising, < t: where a sentence begins, so a statement may stand
    ordered: bool

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Hay, int32 [count], and its cuts, int64 [c] rising, the last one `count`.

        It ends where a sentence ends; so it may begin amid one, as any window of a text does.
        """
        if self.ordered:
            return self._stretch(rng, count)
        sizes = np.diff(self.cuts, append=len(self.tokens))
        average = sizes.mean()
        chosen = rng.integers(len(sizes), size=int(count / average * 1.2) + 8)
        while sizes[chosen].sum() < count:
            chosen = np.concatenate([chosen, chosen])
        ends = np.cumsum(sizes[chosen])
        used = int(np.searchsorted(ends, count)) + 1
        chosen, ends = chosen[:used], ends[:used]
        # Token t of the hay is token t - begin + start of its sentence.
        begins = ends - sizes[chosen]
        source = np.arange(ends[-1]) + np.repeat(self.cuts[chosen] - begins, sizes[chosen])
        surplus = int(ends[-1]) - count
        cuts = np.append(begins, ends[-1]) - surplus
        return self.tokens[source[surplus:]], cuts[cuts >= 0]

    def _stretch(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        total = len(self.tokens)
        stop = int(self.cuts[rng.integers(len(self.cuts))]) + total * (count // total + 1)
        start = stop - count
        rounds = range(start // total, stop // total + 1)
        cuts = np.concatenate([self.cuts + lap * total for lap in rounds])
        low, high = np.searchsorted(cuts, [start, stop + 1])
        hay = np.concatenate([self.tokens] * len(rounds)) if len(rounds) > 1 else self.tokens
        begin = start - rounds[0] * total
        return hay[begin:begin + count], cuts[low:high] - start


@functools.lru_cache(maxsize=8)
def noise(encoder: Encoder, split: Split = "test") -> Haystack:
    """Random sentences that say nothing that anyone would ask for."""
    words = vocabulary()
    rng = np.random.default_rng(0)
    sentences: dict[str, None] = {}
    while len(sentences) < _POOL:
        subject, verb, place, time = (
            words[f"noise_{kind}"][rng.integers(len(words[f"noise_{kind}"]))]
            for kind in ("subjects", "verbs", "places", "times")
        )
        form = rng.integers(3)
        sentence = (
            f" The {subject} {verb} {place} {time}.",
            f" {time.capitalize()}, the {subject} {verb} {place}.",
            f" The {subject} {verb} {place}.",
        )[form]
        if split_of(sentence) == split:
            sentences[sentence] = None
    return _of_sentences("noise", encoder(*sentences))


@functools.lru_cache(maxsize=8)
def repeat(encoder: Encoder) -> Haystack:
    """One short passage over and over."""
    pieces = encoder(*_PASSAGE)
    return _of_sentences("repeat", pieces)._replace(ordered=True)


def of_texts(encoder: Encoder, texts: list[str], name: str) -> Haystack:
    """Texts one after the other; statements may stand where a sentence or a line ends.

    Raises:
      UserError: the texts have no such place.
    """
    return of_tokens(encoder, np.concatenate(encoder.tokenizer.encode_batch(texts)), name)


def of_tokens(encoder: Encoder, tokens: np.ndarray, name: str) -> Haystack:
    """Text that is encoded already, int32 [t]; as `of_texts`."""
    opens, closes, breaks = _edges(encoder)
    inside = np.flatnonzero(breaks[tokens[1:]] & (closes >= 1)[tokens[:-1]]
                            | opens[tokens[1:]] & (closes == 2)[tokens[:-1]]) + 1
    if not len(inside):
        inside = np.flatnonzero(opens[tokens[1:]] & (closes >= 1)[tokens[:-1]]) + 1
    if not len(inside):
        raise UserError(f"{name} has no sentences to hide anything between; name another text.")
    return Haystack(name, tokens, inside.astype(np.int64), True)


def open_haystack(encoder: Encoder, source: str, split: Split = "test") -> Haystack:
    """`noise`, `repeat`, or any source that `data.text.load` reads."""
    if source == "noise":
        return noise(encoder, split)
    if source == "repeat":
        return repeat(encoder)
    return of_texts(encoder, [document.text for document in text.load(source)], source)


def _of_sentences(name: str, pieces: list[np.ndarray]) -> Haystack:
    sizes = np.array([len(piece) for piece in pieces])
    return Haystack(name, np.concatenate(pieces), np.cumsum(sizes) - sizes, False)


@functools.lru_cache(maxsize=8)
def _edges(encoder: Encoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By id: opens with a space; closes (0 white, 1 a word, 2 a sentence); opens with a break."""
    # Behind a full stop, so that a decoder which takes the first space away takes none of ours.
    tokenizer, stop = encoder.tokenizer, encoder.tokenizer.encode(".")
    texts = [tokenizer.decode(np.append(stop, i))[1:] for i in range(tokenizer.vocab_size)]
    opens = np.array([t[:1] == " " and t.strip() != "" for t in texts])
    breaks = np.array([t[:1] in ("\n", "\r") for t in texts])
    closes = np.array([
        0 if t[-1:].isspace() or not t else 2 if t.strip()[-1:] in (".", "!", "?") else 1
        for t in texts
    ])
    return opens, closes, breaks
