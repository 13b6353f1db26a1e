"""Needles, look-alike needles, key–value pairs, chains of variables: a text holds it, say it.

Families and parameters are those of RULER (Hsieh et al., 2024, arXiv:2404.06654); the wording is
this project's: what is asked is the beginning of the statement, so that a plain language model
answers by going on.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from data.tasks import words
from data.tasks.assembly import NOTHING, WRONG, Encoder, Plan, Question, Setting, wrong
from mctx.errors import UserError

Kind = Literal["words", "numbers", "uuids"]


def needles(
    setting: Setting, *, num_k: int = 1, num_v: int = 1, num_q: int = 1,
    type_k: Kind = "words", type_v: Kind = "numbers", digits: int = 7,
) -> Plan:
    """RULER's needles in a haystack.

    Args:
      num_k: keys in the text; those that are not asked for mislead.
      num_v: values of each key, all asked for, in the order of the text.
      num_q: keys asked for in one question, answered in the order of the question.
      type_k, type_v, digits: what keys and values are made of.
    """
    rng, asked = setting.rng, num_q * setting.questions
    num_k = max(num_k, asked)
    keys, values = keys_and_values(setting, type_k, type_v, num_k, num_k * num_v + WRONG, digits)
    values, fresh = values[:num_k * num_v], values[num_k * num_v:]
    depths = rng.uniform(size=num_k * num_v)
    if setting.depth is not None:
        first = num_v * num_q  # those of the first question, which are made first
        depths[:first] = rng.uniform(setting.depth, 1, first)
        depths[0] = setting.depth
    order = np.argsort(depths, kind="stable")
    place = np.argsort(order)
    codes = setting.encoder(*(f" {value}" for value in values + fresh))
    codes, fresh_codes = codes[:len(values)], codes[len(values):]
    statements = needle_statements(
        setting.encoder, [keys[i // num_v] for i in order], [codes[i] for i in order]
    )
    questions = []
    for turn in range(setting.questions):
        chosen = range(turn * num_q, (turn + 1) * num_q)
        mine = [
            sorted(range(k * num_v, (k + 1) * num_v), key=lambda i: place[i]) for k in chosen
        ]
        index = [i for group in mine for i in group]
        others = [codes[i] for i in order if i not in set(index)]
        questions.append(Question(
            ask_for(setting.encoder, [keys[k] for k in chosen], num_v),
            tuple(codes[i] for i in index),
            tuple(int(place[i]) for i in index),
            *wrong(rng, [codes[i] for i in index], others, fresh_codes),
        ))
    facts = {"num_k": num_k, "num_v": num_v, "num_q": num_q, "type_k": type_k, "type_v": type_v}
    return Plan(NOTHING, tuple(statements), depths[order], tuple(questions), "all", facts)


def needles_among_needles(
    setting: Setting, *, type_k: Kind = "words", type_v: Kind = "numbers", digits: int = 7
) -> Plan:
    """RULER's haystack of needles: nothing but statements, one of them asked for."""
    return _packed(setting, " The code of {} is", ".", " Recall.", type_k, type_v, digits)


def pairs(
    setting: Setting, *, type_k: Kind = "words", type_v: Kind = "numbers", digits: int = 7
) -> Plan:
    """Key–value pairs, first to last (Liu et al., 2024, "Lost in the middle").

    `depth` says which pair is asked for: 0 the first, 1 the last.
    """
    return _packed(setting, " {} =", ";", " Look up:", type_k, type_v, digits)


def distractors(setting: Setting, *, distractors: int = 8, digits: int = 7) -> Plan:
    """One needle among look-alikes: keys that share a word with the one asked for."""
    rng = setting.rng
    key = words.keys(rng, 1, setting.split)[0]
    keys = [key, *words.alike(rng, key, max(distractors, setting.questions - 1), setting.split)]
    values = words.numbers(rng, len(keys) + WRONG, digits)
    codes = setting.encoder(*(f" {value}" for value in values))
    depths = rng.uniform(size=len(keys))
    depths[0] = depths[0] if setting.depth is None else setting.depth
    order = np.argsort(depths, kind="stable")
    place = np.argsort(order)
    statements = needle_statements(
        setting.encoder, [keys[i] for i in order], [codes[i] for i in order]
    )
    questions = [
        Question(
            ask_for(setting.encoder, [keys[k]], 1), (codes[k],), (int(place[k]),),
            *wrong(rng, [codes[k]], codes[:k] + codes[k + 1:len(keys)], codes[len(keys):]),
        )
        for k in range(setting.questions)
    ]
    facts = {"distractors": len(keys) - 1}
    return Plan(NOTHING, tuple(statements), depths[order], tuple(questions), "all", facts)


def tracking(
    setting: Setting, *, num_chains: int = 1, num_hops: int = 4, examples: int = 1, digits: int = 5
) -> Plan:
    """RULER's variable tracking: which names come down to a value, through chains of names."""
    rng, encoder, size = setting.rng, setting.encoder, num_hops + 1
    if setting.questions > num_chains:
        raise UserError("Each question of variable tracking needs a chain; ask for more chains.")
    front = [_chain_example(setting, size, digits) for _ in range(examples)]
    names = words.coined(rng, num_chains * size + WRONG, setting.split)
    values = words.numbers(rng, num_chains, digits)
    tokens = encoder(*(f" {name}" for name in names))
    statements, depths = [], []
    for chain, value in enumerate(values):
        mine = names[chain * size:(chain + 1) * size]
        statements += _chain(encoder, mine, value)
        low = setting.depth if chain == 0 and setting.depth is not None else 0.0
        there = np.sort(rng.uniform(low, 1, size))
        there[0] = low if chain == 0 and setting.depth is not None else there[0]
        depths.append(there)
    depths = np.concatenate(depths)
    order = np.argsort(depths, kind="stable")
    place = np.argsort(order)
    far = tokens[num_chains * size:]
    questions = []
    for chain in range(setting.questions):
        index = range(chain * size, (chain + 1) * size)
        others = [token for i, token in enumerate(tokens[:num_chains * size]) if i not in index]
        questions.append(Question(
            encoder.one(_which(values[chain])),
            tuple(tokens[i] for i in index),
            tuple(int(place[i]) for i in index),
            *wrong(rng, [tokens[i] for i in index], others, far),
        ))
    return Plan(
        np.concatenate([NOTHING, *front]), tuple(statements[i] for i in order), depths[order],
        tuple(questions), "all", {"num_chains": num_chains, "num_hops": num_hops},
    )


def keys_and_values(
    setting: Setting, type_k: Kind, type_v: Kind, num_k: int, num_v: int, digits: int
) -> tuple[list[str], list[str]]:
    """Distinct keys and distinct values; no key is a value."""
    draw = {
        "words": lambda count: words.keys(setting.rng, count, setting.split),
        "numbers": lambda count: words.numbers(setting.rng, count, digits),
        "uuids": lambda count: words.uuids(setting.rng, count),
    }
    if type_k != type_v:
        return draw[type_k](num_k), draw[type_v](num_v)
    both = draw[type_k](num_k + num_v)
    return both[:num_k], both[num_k:]


def needle_statements(
    encoder: Encoder, keys: Sequence[str], codes: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """` The code of KEY is CODE.`, int32 [n] each."""
    return stated(encoder, [f" The code of {key} is" for key in keys], codes, ".")


def stated(
    encoder: Encoder, leads: Sequence[str], codes: Sequence[np.ndarray], stop: str
) -> list[np.ndarray]:
    """Statements whose leads and stop are text and whose codes are tokens, int32 [n] each."""
    *tokens, end = encoder(*leads, stop)
    return [np.concatenate([lead, code, end]) for lead, code in zip(tokens, codes, strict=True)]


def as_many(
    budget: int, make: Callable[[int], list[np.ndarray]]
) -> list[np.ndarray]:
    """As many statements as fit into `budget` tokens, of those that are made last.

    Raises:
      UserError: not one does.
    """
    size = np.mean([len(statement) for statement in make(32)])
    made = make(int(1.1 * budget / size) + 8)
    fit = int(np.searchsorted(np.cumsum([len(one) for one in made]), budget, side="right"))
    if fit == 0:
        raise UserError("Not one statement fits; ask for longer samples.")
    return made[:fit]


def _packed(
    setting: Setting, lead: str, stop: str, cue: str, type_k: Kind, type_v: Kind, digits: int
) -> Plan:
    rng, encoder = setting.rng, setting.encoder
    keys: list[str] = []
    codes: list[np.ndarray] = []

    def make(count: int) -> list[np.ndarray]:
        keys[:], values = keys_and_values(setting, type_k, type_v, count, count + WRONG, digits)
        codes[:] = encoder(*(f" {value}" for value in values))
        return stated(encoder, [lead.format(key) for key in keys], codes[:count], stop)

    # The longest that an ask may be: twice a common statement, and the cue.
    ask_room = 2 * max(map(len, make(32))) + len(encoder.one(cue))
    statements = as_many(setting.length - ask_room, make)
    count = len(statements)
    asked = rng.choice(count, min(setting.questions, count), replace=False)
    if setting.depth is not None:
        asked[0] = round(setting.depth * (count - 1))
    questions = []
    for i in asked.tolist():
        nearby = rng.choice(count, min(count, 2 * WRONG), replace=False)
        others = [codes[j] for j in nearby if j != i]
        questions.append(Question(
            np.concatenate(encoder(cue, lead.format(keys[i]))), (codes[i],), (i,),
            *wrong(rng, [codes[i]], others, codes[-WRONG:]),
        ))
    facts = {
        "pairs": count, "position": int(asked[0]), "type_k": type_k, "type_v": type_v,
        "key_words": len(keys[0].split()),
    }
    return Plan(NOTHING, tuple(statements), None, tuple(questions), "all", facts)


def ask_for(encoder: Encoder, keys: Sequence[str], num_v: int) -> np.ndarray:
    """What asks for the codes of keys that have `num_v` each, int32 [n]."""
    if len(keys) > 1:
        named = ", ".join(keys[:-1]) + f" and {keys[-1]}"
        pieces = " Recall, in this order.", f" The codes of {named} are"
    elif num_v > 1:
        pieces = " Recall all, in order.", f" The codes of {keys[0]} are"
    else:
        pieces = " Recall.", f" The code of {keys[0]} is"
    return np.concatenate(encoder(*pieces))


def _chain(encoder: Encoder, names: Sequence[str], value: str) -> list[np.ndarray]:
    meanings = [value, *names[:-1]]
    return encoder.joined([
        (" Let", f" {name}", " be", f" {meaning}", ".")
        for name, meaning in zip(names, meanings, strict=True)
    ])


def _which(value: str) -> str:
    return f" Recall, in order. The names that are {value} are"


def _chain_example(setting: Setting, size: int, digits: int) -> np.ndarray:
    names = words.coined(setting.rng, size, setting.split)
    value = words.numbers(setting.rng, 1, digits)[0]
    said = [part for name in names for part in (",", f" {name}")][1:]
    told = setting.encoder(_which(value), *said, ".")
    return np.concatenate([*_chain(setting.encoder, names, value), *told])
