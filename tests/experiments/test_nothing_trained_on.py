"""Nothing evaluated was trained on: what results name, what is drawn, what is asked, against what
the shipped checkpoint says it was trained on. Each comparison is also made where it must fail."""

import functools
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data import minhash, sources, text
from data.books import author_key
from data.tasks import sample, words
from data.tasks.training import training_documents
from data.text import Document
from experiments.eval import ASKING
from experiments.methods import Protocol
from experiments.quickstart import SHIPPED
from experiments.suites import texts
from experiments.suites.segments import PACKAGES
from experiments.suites.trials import Plan
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import EVENT, NEEDLE, PAIR

ROOT = Path(__file__).parents[2]
TOLD = re.compile(r"^[\d,]+ (?:segments of .* out of|packages or authors): (.*)\.$", re.MULTILINE)
MANIFEST = json.loads((SHIPPED / "manifest.json").read_text())
WORD = re.compile("[A-Za-z]+")
FORMS = (NEEDLE, PAIR, EVENT, re.compile(r"\d+\. [a-z]+"))  # the last: of common words
TASKS = [name for name in ASKING if name != "long_nll"]
PICO = Tokenizer.load(SHIPPED)


def named(told: str) -> set[str]:
    """Packages and authors that a document's results say they were measured on."""
    lists = [re.sub(r" and \d+ more$", "", line).split(", ") for line in TOLD.findall(told)]
    return {re.sub(r"^\S+\.jsonl\S* ", "", name) for names in lists for name in names}


def test_no_result_is_of_a_package_or_author_that_was_trained_on():
    measured = named((ROOT / "RESULTS.md").read_text(encoding="utf-8"))
    trained = texts.trained_names(SHIPPED)
    assert len(measured) > PACKAGES and len(trained) > 100
    assert {"flax", "Victor Hugo"} <= measured and not any(n in trained for n in ("", "tasks"))
    assert not {author_key(name) for name in measured} & trained
    line = "9 packages or authors: flax, in.jsonl.xz Charles Dickens, sympy."
    assert {author_key(name) for name in named(line)} & trained == {"charles dickens", "sympy"}


@functools.cache
def installed() -> dict[str, sources.Package]:
    return {package.name: package for package in sources.installed(sources.site_folders())}


def test_packages_that_are_drawn_are_none_that_were_trained_on():
    sketch, trained = np.load(SHIPPED / "sketch.npy"), texts.trained_names(SHIPPED)
    drawn = []
    for name, files in text.unseen_packages(SHIPPED):
        drawn.append(name)
        if len(drawn) <= PACKAGES and (document := next(files, None)):
            assert not minhash.in_sketch(sketch, minhash.signature(document.text)[None])[0]
    assert len(drawn) > PACKAGES
    assert not {author_key(name) for name in drawn} & trained
    left_out = {author_key(name) for name in set(installed()) - set(drawn)}
    assert "transformers" in left_out & trained  # the tests need it, and so did the corpus


def test_text_that_was_trained_on_is_known_even_under_another_name():
    """Files of a package of the corpus, by now of another version; and files of one that is new."""

    def known(name: str) -> float:
        package = installed()[name]
        read = (sources.read(package.root, file) for file in package.files)
        files = itertools.islice((one.text for one in read if not one.fault), 24)
        nameless = [Document("", "", whole) for whole in files]
        return texts.unseen(nameless, SHIPPED)[1] / len(nameless)

    assert known("transformers") > 0.5 and known("flax") < 0.1


@functools.cache
def asked(split: str) -> tuple[str, ...]:
    """Text of one sample of every family that a suite asks about."""
    plan = Plan(None, None, Protocol(), (), (1024,), depths=(0.5,), distractors=(4,))
    facts = [one for name in TASKS for one in ASKING[name].trials(plan)]
    families = {one["family"]: one for one in facts}
    assert set(families) == set(sample.NAMES)
    made = [
        sample.make(family, PICO, one["length"] + 1, one["seed"], split=split)
        for family, one in families.items()
    ]
    return tuple(PICO.decode(np.concatenate([one.prompt, one.continuation])) for one in made)


@functools.cache
def trained_documents() -> tuple[str, ...]:
    """The first documents of every share of tasks that the manifest names, from its own seeds."""
    lengths = tuple(MANIFEST["domains"]["tasks"]["lengths"])
    shares = [one["version"] for one in MANIFEST["packages"] if one["domain"] == "tasks"]
    seeds = sorted({int(version.removeprefix("seed ")) for version in shares})
    assert seeds == list(range(16))  # whichever version of the program made them
    return tuple(
        PICO.decode(document)
        for seed in seeds for document in training_documents(PICO, 2000, seed, lengths)
    )


def task_words(told: tuple[str, ...]) -> set[str]:
    """Words in which tasks differ: listed ones within statements, and six letters made up."""
    listed = {word for own in words.vocabulary().values() for word in own}
    coined = re.compile("([bdfghjklmnprstvwz][aeiou]){3}")
    statements = [found[0] for one in told for form in FORMS for found in form.finditer(one)]
    spoken = {word for one in told for word in one.split() if coined.fullmatch(word)}
    spoken -= {"before"}  # a word of the questions
    return spoken | {word for one in statements for word in WORD.findall(one)} & listed


@pytest.mark.parametrize("split", ["test", "train"])
def test_no_word_that_is_asked_for_was_in_a_training_sample(split):
    evaluated, trained = task_words(asked(split)), task_words(trained_documents())
    assert min(len(evaluated), len(trained)) > 300
    assert bool(evaluated & trained) == (split == "train")
