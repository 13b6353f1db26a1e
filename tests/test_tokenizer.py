import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import bpe
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from tests.data.conftest import code

CODE = "def add(first, second):\n        return first + second\n\n\nclass Sum:\n    x = 12345\n" * 9
TRAINING = [CODE, code(0)]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(TRAINING, 340)


@settings(max_examples=100)
@given(text=st.text() | st.sampled_from([CODE, "a\r\n\tb", "<eot>x<bos><pad>", "  \n \n   x"]))
def test_decoding_undoes_encoding(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    assert not np.isin(ids, [0, 1, 2]).any()  # no text can spell a special token
    assert ids.size == 0 or ids.max() < tokenizer.vocab_size


def test_special_tokens_have_the_first_ids(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eot_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.decode([0, 1, 2]) == "<bos><eot><pad>"


def test_a_line_break_with_its_indentation_is_one_token(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(CODE)]
    assert "\n        " in pieces and "\n    " in pieces
    assert all(len(piece.strip()) <= 2 for piece in pieces if piece.strip().isdigit())


def test_a_batch_is_its_texts(tokenizer):
    texts = ["", "one", CODE]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    file = tokenizer.save(tmp_path)
    for path in (file, tmp_path, str(tmp_path)):
        loaded = Tokenizer.load(path, vocab_size=340)
        assert loaded.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(loaded.encode(CODE), tokenizer.encode(CODE))
    assert bpe.train(TRAINING, 341).fingerprint != tokenizer.fingerprint


def test_other_vocabularies_name_their_special_tokens_differently(tokenizer, tmp_path):
    text = tokenizer.save(tmp_path).read_text()
    other = Tokenizer(text.replace("<eot>", "<|endoftext|>").replace("<pad>", "x1")
                      .replace("<bos>", "x0"))
    assert (other.bos_id, other.eot_id, other.pad_id) == (None, 1, 1)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", None, 5])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="no Unicode text"):
        tokenizer.encode(text)


def test_errors(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at .*tokenizer.json"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="340 ids, but the model knows only 300"):
        Tokenizer.load(tmp_path, vocab_size=300)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(UserError, match="no tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="<eot>"):
        Tokenizer(tokenizer.save(tmp_path).read_text().replace("<eot>", "<other>"))
