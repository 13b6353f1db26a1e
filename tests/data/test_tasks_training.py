import itertools
import re

import numpy as np
import pytest

from data.tasks import words
from data.tasks.training import training_documents
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import EVENT, NEEDLE, PAIR, names_of, whereabouts

PICO = Tokenizer.load("data/checkpoints/pico")
TEXT = "\n\n".join(
    f"def ring_{n}(bell):\n    # It rang twice. Nobody came.\n    return bell + {n}"
    for n in range(400)
)


@pytest.fixture(scope="module")
def documents():
    return list(training_documents(PICO, 300_000, 5, texts=[TEXT]))


def test_documents_end_and_are_as_long_as_asked_for(documents):
    sizes = np.array([len(document) for document in documents])
    assert sizes.sum() - sizes[-1] < 300_000 <= sizes.sum()
    assert sizes.min() >= 96 and sizes.max() <= 1024
    assert np.quantile(sizes, 0.25) < 220 and np.quantile(sizes, 0.9) > 500  # log-uniform
    for document in documents:
        assert document.dtype == np.int32 and document[-1] == PICO.eot_id
        assert not (document[:-1] == PICO.eot_id).any()
    code = [b"def ring" in PICO.decode(document).encode() for document in documents]
    assert 0.2 < np.mean(code) < 0.6


def test_every_answer_is_right(documents):
    """Each question of each document, answered by reading what stands before it."""
    asked = dict.fromkeys(
        ("code", "codes", "several", "pair", "names", "facts", "common", "frequent"), 0
    )
    for document in documents:
        text = PICO.decode(document[:-1])
        story = re.split(r" (?=Recall|Look up:|Where |The \d+ most|The three most)", text)
        head, questions = story[0], story[1:]
        assert questions
        codes: dict[str, list[str]] = {}
        for key, value in NEEDLE.findall(head):
            codes.setdefault(key, []).append(value)
        for question, more in zip(questions, [*questions[1:], ""], strict=True):
            if found := re.fullmatch(r"Recall\. The code of (.*) is (.*)\.", question):
                asked["code"] += 1
                assert codes[found[1]] == [found[2]]
            elif found := re.fullmatch(r"Recall all, in order\. The codes of (.*) are (.*)\.",
                                       question):
                asked["codes"] += 1
                assert codes[found[1]] == found[2].split(", ")
            elif found := re.fullmatch(r"Recall, in this order\. The codes of (.*) are (.*)\.",
                                       question):
                asked["several"] += 1
                keys = re.split(", | and ", found[1])
                assert [codes[key] for key in keys] == [[v] for v in found[2].split(", ")]
            elif found := re.fullmatch(r"Look up: (.*) = (\d+)\.", question):
                asked["pair"] += 1
                assert dict(PAIR.findall(head))[found[1]] == found[2]
            elif found := re.fullmatch(r"Recall, in order\. The names that are (\d+) are (.*)\.",
                                       question):
                asked["names"] += 1
                assert names_of(head, found[1]) == found[2].split(", ")
            elif found := re.fullmatch(r"Where [^?]*\? .* is in the ([a-z]+)\.", question) or (
                re.fullmatch(r"Where [^?]*\? .* was in the ([a-z]+)\.", question)
            ):
                asked["facts"] += 1
                sentences = [event[0] for event in EVENT.finditer(head)]
                assert whereabouts(sentences, question) == found[1]
            elif found := re.fullmatch(r"The (\d+) most common words.* are (.*)\.", question):
                asked["common"] += 1
                assert found[2].split(", ") == sorted(found[2].split(", ")) and not more
            else:
                asked["frequent"] += 1
                assert question.startswith("The three most common words") and not more
    assert all(number >= 2 for number in asked.values()), asked
    assert sum(asked.values()) > 2 * len(documents)  # several questions a document


def test_no_word_of_a_test_is_learnt(documents):
    test = {w for kind in ("adjectives", "nouns", "people", "objects")
            for w in words.listed(kind, "test")}
    for document in documents:
        text = PICO.decode(document)
        keys = [key for found in (NEEDLE, PAIR) for key, _ in found.findall(text)]
        used = {word for key in keys for word in key.split()}
        used |= {word for event in EVENT.finditer(text) for word in (event[1], event["taken"])}
        assert not used & test


def test_documents_are_a_function_of_the_seed(documents):
    again = training_documents(PICO, 300_000, 5, texts=[TEXT])
    for one, two in zip(documents[:40], itertools.islice(again, 40), strict=True):
        np.testing.assert_array_equal(one, two)
    other = {d.tobytes() for d in training_documents(PICO, 50_000, 6, texts=[TEXT])}
    assert not other & {document.tobytes() for document in documents}


def test_documents_without_texts_are_hidden_in_noise():
    for document in training_documents(PICO, 20_000, 0, lengths=(80, 200)):
        assert 80 <= len(document) <= 200
    with pytest.raises(UserError, match="longer"):
        next(training_documents(PICO, 10, 0, lengths=(20, 50)))
