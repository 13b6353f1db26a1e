"""From statements and questions to token samples: encoding in pieces, splicing, exact sizes.

All text of a task is made of pieces that begin with a space (or end a sentence), each encoded once
and never together with its neighbours, so that a statement has the same tokens wherever it stands
and an answer the same tokens in its statement and in the continuation.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from data.tasks.words import Split
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

Rule = Literal["all", "part"]

NOTHING = np.zeros(0, np.int32)
WRONG = 7  # wrong candidates of a question
_WORD = re.compile(r" ?[^ ]+")
_ANCHORS = ("", "0", "a", ")")  # nothing is best; one of the others must do
_PROBES = (" The", " 4", ",", ".", ";")
_REMEMBERED = 2**20  # words


class Sample(NamedTuple):
    """One question over one history."""

    family: str
    prompt: np.ndarray  # int32 [n], all before the answer; n ≡ 1 modulo the block
    answers: tuple[np.ndarray, ...]  # each int32 [a], as it stands in the continuation
    continuation: np.ndarray  # int32 [c]: the one right greedy continuation
    candidates: tuple[np.ndarray, ...]  # continuations to rank, the right one first
    support: tuple[tuple[int, int], ...]  # token ranges of the prompt: what must be known
    depth: float  # 0..1: where the first support stands between the haystack's ends
    rule: Rule  # how RULER scores the family
    facts: dict  # what results may be grouped by; `in_text`: wrong candidates that the text holds


class Question(NamedTuple):
    """What is asked of a text, in tokens; answers in the order in which they are to be said."""

    ask: np.ndarray  # int32 [q]
    answers: tuple[np.ndarray, ...]
    support: tuple[int, ...]  # indices of statements
    near: tuple[tuple[np.ndarray, ...], ...]  # wrong answers made of what the text holds
    far: tuple[tuple[np.ndarray, ...], ...]  # wrong answers made of what it does not hold


class Plan(NamedTuple):
    """A text before it has its haystack."""

    front: np.ndarray  # int32 [f], before everything: a worked example, say
    statements: tuple[np.ndarray, ...]  # in the order of the text
    depths: np.ndarray | None  # [statements] rising, 0..1; None: all together, at the end
    questions: tuple[Question, ...]
    rule: Rule
    facts: dict
    alone: bool = True  # the haystack may not hold an answer by itself


class Encoder:
    """Encodes pieces of text, word by word, as words are encoded behind other text.

    Words (each with the space before it) are remembered, so that a tokenizer sees each but once;
    tokenizers cut text before spaces, so nothing is lost by it. Some put a space before whatever
    they are given; their words are encoded behind an anchor, which is then taken away.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._anchor = next(anchor for anchor in _ANCHORS if self._is_anchor(anchor))
        self._skip = len(tokenizer.encode(self._anchor))

    def __call__(self, *texts: str) -> list[np.ndarray]:
        """Token ids of each piece, int32 [n]."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        known, pieces = self._known, [_WORD.findall(text) for text in texts]
        new = list({word: None for words in pieces for word in words if word not in known})
        if new:
            encoded = self.tokenizer.encode_batch([self._anchor + word for word in new])
            for word, ids in zip(new, encoded, strict=True):
                known[word] = ids[self._skip:].tolist()
        return [
            np.array([i for word in words for i in known[word]], np.int32) for words in pieces
        ]

    def one(self, text: str) -> np.ndarray:
        """Token ids of one piece, int32 [n]."""
        return self(text)[0]

    def _is_anchor(self, anchor: str) -> bool:
        """Whether words have the tokens behind an anchor that they have behind other text."""
        if anchor == _ANCHORS[-1]:
            return True
        behind = _ANCHORS[1]
        bare, *there = self.tokenizer.encode_batch([anchor, *(anchor + w for w in _PROBES)])
        other, *here = self.tokenizer.encode_batch([behind, *(behind + w for w in _PROBES)])
        return all(
            np.array_equal(ids[:len(bare)], bare)
            and np.array_equal(ids[len(bare):], usual[len(other):])
            for ids, usual in zip(there, here, strict=True)
        )

    def joined(self, statements: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Statements of several pieces each, int32 [n]; pieces are encoded apart."""
        ids = self(*(part for parts in statements for part in parts))
        ends = np.cumsum([len(parts) for parts in statements]).tolist()
        return [
            np.concatenate(ids[end - len(parts):end])
            for parts, end in zip(statements, ends, strict=True)
        ]


class Setting(NamedTuple):
    """What every family is made with."""

    encoder: Encoder
    rng: np.random.Generator
    split: Split
    length: int  # tokens of the prompt
    depth: float | None  # 0..1: where the first support shall stand; None: anywhere
    questions: int  # how many to ask, one after the other: 1 in a test


def rule_score(rule: Rule, text: str, answers: Sequence[str]) -> float:
    """RULER's scores of an output: `all`, the share of answers it holds; `part`, whether any.

    Case does not matter, nor does white space at an answer's ends; 0..1.
    """
    held = [answer.strip().lower() in text.lower() for answer in answers]
    return float(np.mean(held)) if rule == "all" else float(any(held))


def wrong(
    rng: np.random.Generator, right: Sequence[np.ndarray], others: Sequence[np.ndarray],
    fresh: Sequence[np.ndarray],
) -> tuple[tuple[tuple[np.ndarray, ...], ...], tuple[tuple[np.ndarray, ...], ...]]:
    """Wrong answers, alike in form to the right ones: what the text holds, and what it does not.

    A wrong answer has one right part exchanged, for one of `others` (parts that the text holds) or
    of `fresh` (parts that it does not); or, where there are several, two parts in each other's
    place.
    """
    near = []
    for i in rng.permutation(len(others))[:WRONG // 2 + 1]:
        slot = rng.integers(len(right))
        near.append((*right[:slot], others[i], *right[slot + 1:]))
    swaps = [(i, j) for j in range(len(right)) for i in range(j)]
    for k in rng.permutation(len(swaps))[:WRONG // 2 + 1 - len(near)]:
        mixed, (i, j) = list(right), swaps[k]
        mixed[i], mixed[j] = mixed[j], mixed[i]
        near.append(tuple(mixed))
    far = []
    for code in fresh[:WRONG - len(near)]:
        slot = rng.integers(len(right))
        far.append((*right[:slot], code, *right[slot + 1:]))
    return tuple(near), tuple(far)


def prompt_length(length: int, block: int) -> int:
    """The greatest n ≤ length with n ≡ 1 modulo the block."""
    if length < block + 1:
        raise UserError(f"A sample needs more than a block; ask for {block + 1} tokens at least.")
    return (length - 1) // block * block + 1


def separated(answers: Sequence[np.ndarray], comma: np.ndarray) -> np.ndarray:
    """Answers with commas between them, int32 [c]."""
    parts = [part for answer in answers for part in (comma, answer)]
    return np.concatenate(parts[1:])


def room(plan: Plan, length: int) -> int:
    """Tokens that are left for the haystack when the first question is asked at `length`.

    Raises:
      UserError: there are none.
    """
    needed = len(plan.front) + sum(map(len, plan.statements)) + len(plan.questions[0].ask)
    if needed > length:
        raise UserError(f"This sample needs {needed} tokens; ask for at least so many.")
    return length - needed


def splice(plan: Plan, hay: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put statements into a haystack, each at the cut that is nearest to its depth.

    Args:
      plan: statements and depths.
      hay: int32 [h].
      cuts: rising places in 0..h where a statement may stand.

    Returns:
      The text without question, int32 [front + h + statements], and where each statement begins
      in it, int64 [statements].
    """
    if plan.depths is None or not len(cuts):
        places = np.full(len(plan.statements), len(hay))
    else:
        wanted = np.asarray(plan.depths) * len(hay)
        right = np.clip(np.searchsorted(cuts, wanted), 1, max(len(cuts) - 1, 1))
        right = np.minimum(right, len(cuts) - 1)
        left = np.maximum(right - 1, 0)
        places = np.where(wanted - cuts[left] <= cuts[right] - wanted, cuts[left], cuts[right])
    sizes = np.array([len(statement) for statement in plan.statements], np.int64)
    begins = len(plan.front) + places + np.cumsum(sizes) - sizes
    parts, done = [plan.front], 0
    for place, statement in zip(places.tolist(), plan.statements, strict=True):
        if place > done:
            parts.append(hay[done:place])
            done = place
        parts.append(statement)
    parts.append(hay[done:])
    return np.concatenate(parts).astype(np.int32, copy=False), begins


def occurs(needle: np.ndarray, text: np.ndarray) -> bool:
    """Whether a run of tokens stands anywhere in a text."""
    starts = np.flatnonzero(text[: len(text) - len(needle) + 1] == needle[0])
    for offset in range(1, len(needle)):
        starts = starts[text[starts + offset] == needle[offset]]
    return bool(len(starts))
