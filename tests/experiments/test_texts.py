"""Long texts: grouped as a bootstrap draws them, and nothing that was trained on."""

import json
import sys
import types

import numpy as np
import pytest

from data import bpe, hub, minhash, text
from data.text import Document
from experiments.suites import texts
from mctx.errors import UserError
from tests.data.conftest import code


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([code(0)], 400)


def test_an_author_is_one_group_however_the_books_are_ordered(tokenizer):
    books = [Document(author, title, "word " * 50)
             for title, author in enumerate(["Ann", "Bob", "Ann", ""])]
    books[3] = books[3]._replace(name="Nobody's")
    found = texts.by_group("s", books, tokenizer, least=20, most=10_000)
    assert [stream.group for stream in found] == ["Ann", "Bob", "Nobody's"]
    sizes = [len(stream.tokens) for stream in found]
    assert sizes[0] == 2 * sizes[1]
    cut = texts.by_group("s", books, tokenizer, least=sizes[1] + 1, most=sizes[1] + 2)
    assert [(stream.group, len(stream.tokens)) for stream in cut] == [("Ann", sizes[1] + 2)]


def test_what_the_checkpoint_was_trained_on_is_left_out(tmp_path):
    known, fresh = Document("a", "known", code(1)), Document("b", "fresh", code(2))
    assert texts.unseen([known, fresh], tmp_path) == ([known, fresh], None)
    np.save(tmp_path / "sketch.npy", minhash.sketch(minhash.signature(code(1))[None]))
    assert texts.unseen([known, fresh], tmp_path) == ([fresh], 1)
    (tmp_path / "manifest.json").write_text(json.dumps({"packages": [
        {"name": "R. D. Blackmore/Lorna Doone"}, {"name": "flax"}, {"name": ""},
    ]}))
    new = [Document("R.D. blackmore", "another", code(3)), Document("flaxen", "x", code(4)),
           Document("", "nobody's", code(5))]
    assert texts.unseen(new, tmp_path) == (new[1:], 1)  # of an author it knows, a book it does not
    (tmp_path / "manifest.json").write_text('{"packages": [')
    with pytest.raises(UserError, match="manifest.json is not whole JSON"):
        texts.unseen(new, tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "in").mkdir()
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir()
        (tmp_path / "in" / name / "f.py").write_text(code(1))
    with pytest.raises(UserError, match="trained on all of"):
        texts.streams([str(tmp_path / "in")], tmp_path, bpe.train([code(0)], 400), 10, 20)


def test_a_data_set_of_the_hub_is_read_by_author(monkeypatch):
    def load_dataset(name, split, streaming):
        assert (name, streaming) == ("some/books", True)
        if split != "valid":
            raise ConnectionError("no such host")
        return [{"author": "Ann", "text": "one"}, {"short_book_title": "T", "text": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = text.load("hf:some/books@valid")
    assert [(one.package, one.text) for one in found] == [("Ann", "one"), ("T", "two")]
    with pytest.raises(UserError, match="no such host"):
        text.load("hf:some/books")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library `datasets`"):
        list(hub.texts("hf:some/books"))
