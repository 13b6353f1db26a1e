"""Words of the tasks: keys, values, names; those of training samples are never those of tests."""

import functools
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from mctx.errors import UserError

Split = Literal["train", "test"]

_SYLLABLES = [onset + vowel for onset in "bdfghjklmnprstvwz" for vowel in "aeiou"]


def split_of(word: str) -> Split:
    """The split that a word belongs to: a bit of its hash, the same everywhere and for ever."""
    return ("train", "test")[hashlib.sha256(word.encode()).digest()[0] & 1]


@functools.cache
def listed(kind: str, split: Split) -> tuple[str, ...]:
    """Words of a kind (a paragraph of words.txt) that belong to a split."""
    return tuple(word for word in vocabulary()[kind] if split_of(word) == split)


@functools.cache
def vocabulary() -> dict[str, tuple[str, ...]]:
    """All words of words.txt, by kind."""
    kinds: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            words = kinds.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            words.append(line)
    return {
        kind: tuple(
            " ".join(lines).split("|") if "|" in lines[0] else " ".join(lines).split()
        )
        for kind, lines in kinds.items()
    }


def choose(rng: np.random.Generator, words: tuple[str, ...], count: int) -> list[str]:
    """Distinct words, in random order.

    Raises:
      UserError: there are fewer.
    """
    if count > len(words):
        raise UserError(f"There are only {len(words)} such words; ask for at most so many.")
    return [words[i] for i in rng.choice(len(words), count, replace=False)]


def key_words(count: int, split: Split) -> int:
    """How many words a key needs (2 or 3) so that `count` keys are a small part of all."""
    pairs = len(listed("adjectives", split)) * len(listed("nouns", split))
    return 2 if count <= pairs // 2 else 3


def keys(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Distinct keys: `amber falcon`, or `swift amber falcon` where very many are asked for.

    Raises:
      UserError: more keys are asked for than there are.
    """
    adjectives, nouns = listed("adjectives", split), listed("nouns", split)
    some, things = len(adjectives), len(nouns)
    if key_words(count, split) == 2:
        chosen = rng.choice(some * things, count, replace=False)
        return [f"{adjectives[i // things]} {nouns[i % things]}" for i in chosen]
    total = some * (some - 1) * things
    if count > total:
        raise UserError(f"There are only {total} keys; ask for a shorter sample.")
    chosen = rng.choice(total, count, replace=False)
    first, rest = chosen // ((some - 1) * things), chosen % ((some - 1) * things)
    second = rest // things
    second += second >= first  # the second adjective is another than the first
    return [
        f"{adjectives[i]} {adjectives[j]} {nouns[k]}"
        for i, j, k in zip(first, second, rest % things, strict=True)
    ]


def alike(rng: np.random.Generator, key: str, count: int, split: Split) -> list[str]:
    """Distinct keys that look like a two-word key: all but as many as there are share a word.

    Those that share its noun or its adjective come in random order; where more are asked for than
    exist (a few hundred), other keys follow.
    """
    adjective, noun = key.split()
    near = [f"{word} {noun}" for word in listed("adjectives", split) if word != adjective]
    near += [f"{adjective} {word}" for word in listed("nouns", split) if word != noun]
    if count <= len(near):
        return choose(rng, tuple(near), count)
    others = keys(rng, count + 1, split)
    taken = {key, *near}
    mixed = [near[i] for i in rng.permutation(len(near))]
    return (mixed + [other for other in others if other not in taken])[:count]


def numbers(rng: np.random.Generator, count: int, digits: int = 7) -> list[str]:
    """Distinct numbers of so many digits, the first not 0.

    Raises:
      UserError: there are fewer.
    """
    low = 10 ** (digits - 1)
    if count > 9 * low // 2:
        raise UserError(f"Numbers of {digits} digits are too few; ask for more digits.")
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen.update(dict.fromkeys(rng.integers(low, 10 * low, count - len(chosen)).tolist()))
    return [str(number) for number in chosen]


def uuids(rng: np.random.Generator, count: int) -> list[str]:
    """Random UUIDs of version 4."""
    raw = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    return [
        f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        for h in (row.tobytes().hex() for row in raw)
    ]


def coined(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Distinct made-up words of six letters that no list holds: none is a part of another."""
    real = {word for kind in vocabulary().values() for word in kind}
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        draws = rng.integers(len(_SYLLABLES), size=(2 * (count - len(chosen)) + 8, 3))
        made = ("".join(_SYLLABLES[i] for i in row) for row in draws.tolist())
        chosen.update(
            dict.fromkeys(w for w in made if split_of(w) == split and w not in real)
        )
    return list(chosen)[:count]
