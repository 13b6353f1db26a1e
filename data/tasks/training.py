"""Training samples of the families: short texts with several questions each, for a base's mix."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.tasks import counting, retrieval
from data.tasks.assembly import Plan, Setting, separated, splice
from data.tasks.facts import facts
from data.tasks.haystack import Haystack, noise, of_texts, repeat
from data.tasks.hiding import clean_hay
from data.tasks.sample import encoder_of
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

_UNIT = 36  # tokens that a needle and its question take, roughly


class Recipe(NamedTuple):
    """A family of training samples: its share of the documents, and how one is planned."""

    weight: float
    plan: Callable[[Setting, int], Plan]  # the number: how many needles have room
    least: int = 0  # tokens without which it cannot be


def _needles(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    num_k = int(rng.integers(1, most + 1))
    questions = int(rng.integers(1, min(num_k, 8) + 1))
    type_v = str(rng.choice(["numbers", "words", "uuids"], p=[0.87, 0.1, 0.03]))
    return retrieval.needles(
        setting._replace(questions=questions), num_k=num_k, type_v=type_v, digits=_digits(rng)
    )


def _values(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    num_v = int(rng.integers(2, 5))
    num_k = int(rng.integers(1, max(most // num_v, 1) + 1))
    return retrieval.needles(
        setting._replace(questions=int(rng.integers(1, num_k + 1))),
        num_k=num_k, num_v=num_v, digits=_digits(rng),
    )


def _queries(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    num_q = int(rng.integers(2, 5))
    questions = int(rng.integers(1, max(most // num_q, 1) + 1))
    return retrieval.needles(
        setting._replace(questions=min(questions, 3)),
        num_k=max(most, num_q), num_q=num_q, digits=_digits(rng),
    )


def _alike(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    count = int(rng.integers(1, most + 1))
    return retrieval.distractors(
        setting._replace(questions=int(rng.integers(1, min(count + 1, 6) + 1))),
        distractors=count, digits=_digits(rng),
    )


def _among_needles(setting: Setting, most: int) -> Plan:
    return retrieval.needles_among_needles(_part(setting, most), digits=_digits(setting.rng))


def _pairs(setting: Setting, most: int) -> Plan:
    return retrieval.pairs(_part(setting, most), digits=_digits(setting.rng))


def _tracking(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    num_hops = int(rng.integers(1, 5))
    num_chains = int(rng.integers(1, max(most // (num_hops + 1), 1) + 1))
    return retrieval.tracking(
        setting._replace(questions=int(rng.integers(1, num_chains + 1))),
        num_chains=num_chains, num_hops=num_hops, examples=0,
    )


def _facts(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    hops = int(rng.integers(1, min(3, 1 + most // 6) + 1))
    return facts(
        setting._replace(questions=int(rng.integers(1, min(most, 4) + 1))), hops=hops,
        events=int(rng.integers(2 * hops, 2 * hops + 2 * most)),
        people=int(rng.integers(2, 5)), objects=int(rng.integers(1, 4)),
    )


def _common(setting: Setting, most: int) -> Plan:
    rng = setting.rng
    return counting.common_words(
        _with_room(setting), freq_cw=int(rng.integers(3, 7)), freq_ucw=1,
        num_cw=int(rng.integers(2, 6)), examples=0,
    )


def _frequent(setting: Setting, most: int) -> Plan:
    return counting.frequent_words(_with_room(setting))


# Weighted to what a base of a few million parameters can learn: look up a key, say its value.
RECIPES = (
    Recipe(0.23, _needles),
    Recipe(0.11, _alike),
    Recipe(0.12, _among_needles),
    Recipe(0.16, _pairs),
    Recipe(0.09, _values),
    Recipe(0.06, _queries),
    Recipe(0.07, _tracking),
    Recipe(0.10, _facts),
    Recipe(0.03, _common, 384),
    Recipe(0.03, _frequent, 512),
)


def training_documents(
    tokenizer: Tokenizer,
    tokens: int,
    seed: int,
    lengths: tuple[int, int] = (96, 1024),
    texts: Sequence[str] = (),
) -> Iterator[np.ndarray]:
    """Documents of the families, in the words of the training split.

    Each is a text in which statements are hidden and, at its end, questions with their right
    answers one after the other. Half of them are hidden in `texts`, the others in noise.

    Args:
      tokenizer: of the model that is to learn them.
      tokens: no more documents once there are so many tokens.
      seed: non-negative; other seeds give other documents, so that processes may share the work.
      lengths: least and most tokens of a document, which are drawn log-uniformly.
      texts: what to hide in, code and prose; training text only.

    Yields:
      int32 [n], the last token the end of text.

    Raises:
      UserError: the lengths leave no room.
    """
    low, high = lengths
    if not 2 * _UNIT <= low <= high:
        raise UserError(f"Training documents need {2 * _UNIT} tokens or more; ask for longer ones.")
    encoder = encoder_of(tokenizer)
    rng = np.random.default_rng([seed, 1])
    hays = [noise(encoder, "train"), repeat(encoder)]
    shares = [0.9, 0.1]
    if texts:
        hays.append(of_texts(encoder, list(texts), "texts"))
        shares = [0.45, 0.05, 0.5]
    weights = np.array([recipe.weight for recipe in RECIPES])
    comma, stop = encoder(",", ".")
    count = 0
    while count < tokens:
        length = int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
        recipe = RECIPES[rng.choice(len(RECIPES), p=weights / weights.sum())]
        if length < recipe.least:
            continue
        setting = Setting(encoder, rng, "train", length, None, 1)
        plan = recipe.plan(setting, max((length - _UNIT) // _UNIT, 1))
        haystack = hays[rng.choice(len(hays), p=shares)]
        document = _document(plan, haystack, setting, comma, stop)
        if document is not None:
            count += len(document)
            yield document


def _document(
    plan: Plan, haystack: Haystack, setting: Setting, comma: np.ndarray, stop: np.ndarray
) -> np.ndarray | None:
    """The text, its questions and their answers, int32 [n]; None where there is no room."""
    asked = [
        part for question in plan.questions
        for part in (question.ask, separated(question.answers, comma), stop)
    ]
    asked.append(np.array([setting.encoder.tokenizer.eot_id], np.int32))
    room = setting.length - sum(map(len, (plan.front, *plan.statements, *asked)))
    if room < 0:
        return None
    hay, cuts = clean_hay(plan, haystack, setting, room)
    text, _ = splice(plan, hay, cuts)
    return np.concatenate([text, *asked])


def _part(setting: Setting, most: int) -> Setting:
    """A setting for texts of statements only, which fill some part of it, with its questions."""
    questions = int(setting.rng.integers(1, min(most, 8) + 1))
    free = setting.length - questions * 24
    length = int(free * setting.rng.uniform(0.3, 1))
    return setting._replace(questions=questions, length=max(length, _UNIT * 2))


def _with_room(setting: Setting) -> Setting:
    """A setting for texts that fill all of it, with room for the answer."""
    return setting._replace(length=setting.length - _UNIT)


def _digits(rng: np.random.Generator) -> int:
    return int(rng.integers(4, 8))
