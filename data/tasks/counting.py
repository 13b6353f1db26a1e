"""Words that occur often, in a text made of words: RULER's common and frequent words."""

import numpy as np

from data.tasks import words
from data.tasks.assembly import NOTHING, Encoder, Plan, Question, Setting, wrong
from mctx.errors import UserError

_ASK_COMMON = " The {} most common words, in the order of the alphabet, are"
_ASK_FREQUENT = (
    " The three most common words, the most common first and not counting the dots, are"
)
_SHORT = 4096  # below it RULER counts to 6 and 1 instead of 30 and 3, and shows a smaller example


def common_words(
    setting: Setting, *, freq_cw: int | None = None, freq_ucw: int | None = None,
    num_cw: int = 10, examples: int = 1,
) -> Plan:
    """RULER's common words: a numbered list in which ten words stand more often than the others.

    Args:
      freq_cw, freq_ucw: how often a common and an uncommon word stand in it; None for 30 and 3
        (6 and 1 in prompts of fewer than 4,096 tokens).
      num_cw: common words, all asked for.
      examples: worked examples before it.
    """
    short = setting.length < _SHORT
    freq_cw = (6 if short else 30) if freq_cw is None else freq_cw
    freq_ucw = (1 if short else 3) if freq_ucw is None else freq_ucw
    if freq_ucw >= freq_cw:
        raise UserError("Common words must be more frequent than others; raise freq_cw.")
    encoder, rng = setting.encoder, setting.rng
    ask = encoder.one(_ASK_COMMON.format(num_cw))
    # A list of so many words that it cannot fit is cut to what fits.
    most = max(setting.length // freq_ucw // 3, num_cw) + 2 * num_cw
    pool = _pool(setting, most + 2 * num_cw * examples)
    front = [
        _worked(setting, [pool.pop() for _ in range(2 * num_cw)], num_cw, short)
        for _ in range(examples)
    ]
    common, others = pool[:num_cw], pool[num_cw:]
    tokens = encoder(*(f" {word}" for word in pool))
    budget = setting.length - sum(map(len, front)) - len(ask)
    fit = _uncommon_that_fit(encoder, tokens, num_cw, freq_cw, freq_ucw, budget)
    repeats = np.array([freq_cw] * num_cw + [freq_ucw] * fit)
    order = rng.permutation(np.repeat(np.arange(num_cw + fit), repeats))
    marks = encoder(*(f" {number}." for number in range(1, len(order) + 1)))
    statements = [
        np.concatenate([mark, tokens[i]]) for mark, i in zip(marks, order.tolist(), strict=True)
    ]
    said = sorted(range(num_cw), key=common.__getitem__)
    question = Question(
        ask, tuple(tokens[i] for i in said), tuple(np.flatnonzero(order < num_cw).tolist()),
        *wrong(
            rng, [tokens[i] for i in said], tokens[num_cw:num_cw + fit][:8],
            encoder(*(f" {word}" for word in others[fit:fit + 8])),
        ),
    )
    facts = {
        "freq_cw": freq_cw, "freq_ucw": freq_ucw, "num_cw": num_cw, "words": len(order)
    }
    return Plan(
        np.concatenate([NOTHING, *front]), tuple(statements), None, (question,), "all", facts
    )


def frequent_words(setting: Setting, *, alpha: float = 2.0, vocabulary: int | None = None) -> Plan:
    """RULER's frequent words: made-up words with Zipf's frequencies, the first of them dots.

    Args:
      alpha: the word of rank k stands N k^-alpha / zeta(alpha) times in a text of about N words.
      vocabulary: ranks; None for one every 50 tokens of the prompt.
    """
    if alpha <= 1:
        raise UserError(f"Zipf's exponent must be above 1, and {alpha} is not.")
    encoder, rng = setting.encoder, setting.rng
    ranks = max(setting.length // 50, 8) if vocabulary is None else vocabulary
    made = words.coined(rng, ranks + 8, setting.split)
    tokens = encoder(" ...", *(f" {word}" for word in made))
    ask = encoder.one(_ASK_FREQUENT)
    shares = np.arange(1, ranks + 1) ** -float(alpha) / _zeta(alpha)
    sizes = np.array([len(one) for one in tokens[:ranks]])
    low, high = 0, setting.length * 2
    while low < high:  # the greatest N that fits
        middle = (low + high + 1) // 2
        fits = (middle * shares).astype(int) @ sizes <= setting.length - len(ask)
        low, high = (middle, high) if fits else (low, middle - 1)
    repeats = (low * shares).astype(int)
    if ranks < 5 or len(set(repeats[:5].tolist())) < 5:
        raise UserError("The text is too short to tell frequencies apart; ask for a longer one.")
    order = rng.permutation(np.repeat(np.arange(ranks), repeats))
    support = np.flatnonzero((order >= 1) & (order <= 3))
    held = int(np.count_nonzero(repeats))
    question = Question(
        ask, tuple(tokens[1:4]), tuple(support.tolist()),
        *wrong(rng, tokens[1:4], tokens[4:min(held, 8)], tokens[ranks + 1:]),
    )
    statements = tuple(tokens[i] for i in order.tolist())
    facts = {"alpha": alpha, "ranks": held, "words": len(order)}
    return Plan(NOTHING, statements, None, (question,), "all", facts)


def _pool(setting: Setting, count: int) -> list[str]:
    """Distinct words, listed ones first and then made-up ones; both sorts in random order."""
    listed = tuple(
        word for kind in ("adjectives", "nouns", "objects")
        for word in words.listed(kind, setting.split)
    )
    chosen = words.choose(setting.rng, listed, min(count, len(listed)))
    return chosen + words.coined(setting.rng, count - len(chosen), setting.split)


def _worked(setting: Setting, pool: list[str], num_cw: int, short: bool) -> np.ndarray:
    """A short list with its question and answer, int32 [n]."""
    common, others = pool[:num_cw], pool[num_cw:]
    frequencies = (3, 1) if short else (10, 3)
    listed = [word for word in common for _ in range(frequencies[0])]
    listed += [word for word in others for _ in range(frequencies[1])]
    order = setting.rng.permutation(len(listed))
    text = "".join(f" {place}. {listed[i]}" for place, i in enumerate(order, 1))
    answer = ", ".join(sorted(common))
    return setting.encoder.one(f"{text}{_ASK_COMMON.format(num_cw)} {answer}.")


def _uncommon_that_fit(
    encoder: Encoder, tokens: list[np.ndarray], num_cw: int, freq_cw: int, freq_ucw: int,
    budget: int,
) -> int:
    """How many uncommon words a numbered list of `budget` tokens has room for, beside the common.

    Raises:
      UserError: not one.
    """
    sizes = np.array([len(one) for one in tokens])
    total = num_cw * freq_cw + freq_ucw * (len(tokens) - num_cw)
    # Each number is counted: a tokenizer may have one token for 99 or 999 and more for others.
    numbers = encoder(*(f" {number}." for number in range(1, total + 1)))
    marks = np.cumsum([len(one) for one in numbers])
    used = marks[num_cw * freq_cw + freq_ucw * np.arange(1, len(tokens) - num_cw + 1) - 1]
    used = used + freq_cw * sizes[:num_cw].sum() + freq_ucw * sizes[num_cw:].cumsum()
    fit = int(np.searchsorted(used, budget, side="right"))
    if fit == 0:
        raise UserError("The list of common words does not fit; ask for longer samples.")
    return min(fit, len(tokens) - num_cw - 8)


def _zeta(alpha: float) -> float:
    """Riemann's zeta: its first terms, and the integral of the others."""
    terms = 10_000
    head = float((np.arange(1, terms) ** -float(alpha)).sum())
    return head + (terms - 0.5) ** (1 - alpha) / (alpha - 1)
