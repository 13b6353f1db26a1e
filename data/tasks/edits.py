"""Edit, then ask: one of several documents is replaced, and the answer must change with it."""

from typing import NamedTuple

import numpy as np

from data.tasks import words
from data.tasks.assembly import (
    NOTHING,
    WRONG,
    Plan,
    Question,
    Sample,
    Setting,
    splice,
    wrong,
)
from data.tasks.haystack import Haystack
from data.tasks.hiding import as_sample, clean_hay
from data.tasks.retrieval import ask_for, needle_statements
from mctx.errors import UserError


class Edit(NamedTuple):
    """Documents, one of which is replaced, and a question that asks for what changed.

    Every document is of whole blocks. The prompts of `before` and `after` are the documents one
    after the other, without and with the replacement, and then the question.
    """

    documents: tuple[np.ndarray, ...]  # before, each int32 [blocks·block]
    replaced: int
    replacement: np.ndarray  # int32 [blocks·block]
    question: np.ndarray  # int32 [q], q ≡ 1 modulo the block
    before: Sample
    after: Sample  # the second candidate of both is the answer of the other: here, the stale one

    @property
    def edited(self) -> tuple[np.ndarray, ...]:
        """The documents after the edit."""
        return (
            *self.documents[:self.replaced], self.replacement, *self.documents[self.replaced + 1:]
        )


def edit(
    setting: Setting, haystack: Haystack, block: int, *, documents: int = 8, grow: int = 0,
    digits: int = 7,
) -> Edit:
    """Make an edit; the prompt after it has the setting's length.

    `setting.depth` says which document is replaced: 0 the first, 1 the last.

    Args:
      block: tokens of a block.
      documents: how many there are; each says the code of another key.
      grow: blocks that the replacement has more than what it replaces.

    Raises:
      UserError: a document is too short to say anything.
    """
    rng, encoder = setting.rng, setting.encoder
    keys = words.keys(rng, documents, setting.split)
    values = words.numbers(rng, documents + 1 + WRONG, digits)
    codes = encoder(*(f" {value}" for value in values))
    codes, new, fresh = codes[:documents], codes[documents], codes[documents + 1:]
    at = (
        int(rng.integers(documents)) if setting.depth is None
        else round(setting.depth * (documents - 1))
    )
    ask, old = ask_for(encoder, [keys[at]], 1), codes[at]
    asking = -(-(len(ask) - 1) // block) * block + 1  # with some hay before it
    statements = needle_statements(encoder, [*keys, keys[at]], [*codes, new])
    sizes = _sizes(setting.length - asking, block, documents)
    before = sizes[at] - grow * block
    if min(*sizes, before) < max(map(len, statements)):
        raise UserError("A document has no room for its statement; ask for longer samples.")
    wrong_ones = wrong(rng, [old], codes[:at] + codes[at + 1:], fresh)
    question = Question(ask, (old, new), (0,), *wrong_ones)  # neither answer may be in the hay

    def write(statement: np.ndarray, size: int) -> tuple[np.ndarray, int]:
        plan = Plan(NOTHING, (statement,), rng.uniform(size=1), (question,), "all", {})
        text, begins = splice(plan, *clean_hay(plan, haystack, setting, size - len(statement)))
        return text, int(begins[0])

    def ask_of(texts: list[np.ndarray], begin: int, which: int, right: list[np.ndarray]) -> Sample:
        plan = Plan(
            NOTHING, (statements[which],), None, (question._replace(answers=(right[0],)),), "all",
            {"documents": documents, "document": at, "grow": grow, "haystack": haystack.name,
             "in_text": len(question.near)},
        )
        begins = np.array([begin + sum(map(len, texts[:at]))])
        made = as_sample(plan, np.concatenate([*texts, lead]), begins, setting)
        return made._replace(candidates=(*right, *made.candidates[1:]))

    written = [
        write(statement, before if i == at else size)
        for i, (statement, size) in enumerate(zip(statements[:-1], sizes, strict=True))
    ]
    replacement, begin = write(statements[-1], sizes[at])
    secret = Plan(NOTHING, (), None, (question,), "all", {})
    lead, _ = clean_hay(secret, haystack, setting, asking - len(ask))
    texts = [text for text, _ in written]
    edited = [*texts[:at], replacement, *texts[at + 1:]]
    return Edit(
        tuple(texts), at, replacement, np.concatenate([lead, ask]),
        ask_of(texts, written[at][1], at, [old, new]),
        ask_of(edited, begin, documents, [new, old]),
    )


def _sizes(tokens: int, block: int, documents: int) -> list[int]:
    """Tokens of each document: whole blocks, as even as can be."""
    blocks = max(tokens, 0) // block
    return [block * (blocks // documents + (i < blocks % documents)) for i in range(documents)]
