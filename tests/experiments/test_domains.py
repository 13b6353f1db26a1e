"""A corpus of domains: opened for training by weight, read for evaluation, told on the card."""

import numpy as np
import pytest

from data import bpe
from data.written import Document, Part, workers, write
from experiments import ship, train
from experiments.configs import pico_base
from experiments.suites.segments import corpus_streams
from mctx.errors import UserError
from tests.data.conftest import code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("domains")
    tokenizer = bpe.train([code(0)], 400)
    with workers(1) as pool:
        for part in ("code/train", "code/valid", "books/train", "books/valid", "tasks/train"):
            domain, _, name = part.partition("/")
            title, version = (f"A/{name}", "") if domain == "books" else (f"{domain}-{name}", "1")
            document = Document(title, version, code(len(part)), np.zeros((1, 64), np.uint32))
            write(root / part, Part([document], {}), tokenizer, pool)
    return root


def opened(folder, part, **weights):
    config = pico_base.get_config()
    config.corpus, config.domains = str(folder), weights
    return train.open_mixture(config, part)


def test_domains_are_opened_by_weight(folder):
    learn = opened(folder, "train", code=3, books=1, tasks=0)
    assert dict(zip(learn.names, learn.weights, strict=True)) == {"books": 0.25, "code": 0.75}
    assert set(opened(folder, "valid", code=3, tasks=1).names) == {"code"}
    assert opened(folder / "code", "train", books=1).names == ("code",)  # one needs no weights
    with pytest.raises(UserError, match="no domain 'music'"):
        opened(folder, "train", code=1, music=1)
    with pytest.raises(UserError, match="validation part"):
        opened(folder, "valid", tasks=1)


def test_evaluation_reads_the_validation_parts_of_all_domains(folder):
    assert set(corpus_streams(folder, 400)) == {"A", "code-valid"}
    assert set(corpus_streams(folder / "books", 400)) == {"A"}
    assert set(corpus_streams(folder / "code/train", 400)) == {"code-train"}


def test_the_card_names_books_by_author_and_title(folder):
    judged = dict(measure="nll", value=1.0, control=2.0, better=True, steps=1, minutes=1.0)
    manifest, _, _ = ship.provenance(folder)
    text = ship.card({"trained": {"base": judged}}, manifest, {"base": 10})
    assert "train by A" in text and "code-train==1" in text and "tasks-train" not in text
    assert "books (1 titles)" in text and "code (1 packages)" in text
