"""A continuation as text, piece by piece: whole characters, cut before a stop string."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mctx.errors import UserError
from mctx.runtime import reading
from mctx.runtime.sampling import Sampling

CONTEXT = 16  # ids before the newest that are decoded with them, for how words are joined
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Ask(NamedTuple):
    """What is asked for: at most `count` tokens, how they are drawn, and before what it ends."""

    count: int
    sampling: Sampling
    stop: tuple[str, ...]


def asked(
    tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
) -> Ask:
    """Settings of a continuation.

    Args:
      tokens: at most so many; temperature, top_k, top_p, seed: those of `Sampling`.
      stop: strings before which the text ends.

    Raises:
      UserError: a setting is out of its range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    if not isinstance(tokens, numbers.Integral) or tokens < 0:
        raise UserError(f"tokens must be a whole number from 0 on, not {tokens!r}.")
    stop = (stop,) if isinstance(stop, str) else stop
    stop = tuple(stop) if isinstance(stop, Sequence) else (stop,)
    if not all(isinstance(one, str) and one for one in stop):
        raise UserError("a stop string must be text of at least one character.")
    return Ask(tokens, sampling, stop)


def stream(reader, tokens: int, **how) -> Iterator[str]:
    """Text as it is drawn, up to `tokens` tokens, the end of the text, or a stop string.

    A token is said when it is known; that may be a step late, so that the machine has the next
    one to do meanwhile. Every token drawn is read like any other: blocks complete, the tree grows,
    the focus moves. That holds for the tokens of a stop string, which is not said; what was drawn
    behind it is forgotten, as if it had never been. Pieces that are left unread are not drawn, or
    forgotten too.

    Args:
      reader: a `Session`, or another that has `opened`, `recent(count)` and
        `drawn(count, sampling)`.
      how: see `asked`.

    Raises:
      UserError: a setting is out of its range; at once, before anything is drawn.
    """
    return _said(reader, asked(tokens, **how))


def _said(reader, ask):
    words = Words(reader.opened.tokenizer.decode, ask.stop, reader.recent(CONTEXT))
    with contextlib.closing(reader.drawn(ask.count, ask.sampling)) as drawn:
        for token in drawn:
            if text := words.add(token):
                yield text
            if words.ended:
                return
    if text := words.rest():
        yield text


class Words:
    """Ids in, text out as soon as it is settled: no half character, nothing that may begin a stop.

    `before`: the ids that stand in front, for some tokenizers leave out the space of a first word.

    Attributes:
      ended: whether a stop string came; nothing follows.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        before: Sequence[int] = (),
    ):
        self._decode, self._stop = decode, tuple(stop)
        self._ids = [int(one) for one in before]  # the newest, and some before
        # Characters of their text that were taken already.
        self._taken = len(decode(self._ids).rstrip(REPLACEMENT)) if self._ids else 0
        self._held = ""  # taken, and not settled
        self.ended = False

    def add(self, token: int) -> str:
        """The text that is settled by one more id; it may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        whole = text.rstrip(REPLACEMENT)  # bytes of a character may be split over tokens
        self._held += whole[self._taken :]
        self._taken = max(self._taken, len(whole))
        if len(self._ids) >= 2 * CONTEXT and whole == text:
            shorter = self._decode(self._ids[-CONTEXT:])
            if text.endswith(shorter):  # else bytes of a character would be cut from its others
                self._ids, self._taken = self._ids[-CONTEXT:], len(shorter)
        ends = [self._held.find(one) for one in self._stop if one in self._held]
        if ends:
            self._held, self.ended = self._held[: min(ends)], True
            return self.rest()
        settled = len(self._held) - _begun(self._held, self._stop)
        said, self._held = self._held[:settled], self._held[settled:]
        return said

    def rest(self) -> str:
        """At the end: what was held back because a stop string might have followed."""
        said, self._held = self._held, ""
        return said


def _begun(text: str, stop: Sequence[str]) -> int:
    """Characters at the text's end that may turn out to begin a stop string."""
    lengths = (n for one in stop for n in range(1, len(one)) if text.endswith(one[:n]))
    return max(lengths, default=0)


def one_by_one(reader, count: int, sampling: Sampling) -> Iterator[int]:
    """Tokens drawn behind anything that has `params`, `tail.last` and `read_tokens`.

    What a `Session` does in steps that are compiled whole; this is for readers that are none.
    """
    key = jax.random.key(sampling.seed)
    for number in range(count):
        logits = reading.next_logits(reader.params["base"], reader.tail.last)
        token = int(reading.drawn_from(logits, key, np.int32(number), sampling))
        if token == reader.opened.tokenizer.eot_id:
            return
        reader.read_tokens(np.array([token], np.int32))
        yield token
