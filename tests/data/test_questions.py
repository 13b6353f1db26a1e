"""Questions whose answer lies in known blocks: repeatable, of the length asked for, and right."""

from pathlib import Path

import numpy as np
import pytest

from data.mixture import domains_of
from data.questions import FARTHEST, Making, Questions, main, question
from data.tasks import words
from data.written import loaded
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import NEEDLE, PAIR

PICO = Path("data/checkpoints/pico")
HOW = Making(PICO, length=1024, tail=40, block=32, seed=0)


@pytest.fixture(scope="module")
def samples():
    tokenizer = loaded(PICO)
    return [question(tokenizer, HOW, i) for i in range(60)]


def test_a_sample_depends_on_seed_and_number_alone(samples):
    afresh = Tokenizer.load(PICO)  # which remembers no word
    for i in (41, 7):
        for one, other in zip(samples[i], question(afresh, HOW, i), strict=True):
            np.testing.assert_array_equal(one, other)
    other = question(afresh, HOW._replace(seed=1), 7)
    assert not np.array_equal(samples[7][0], other[0])


def test_the_answer_lies_in_the_blocks_that_are_flagged(samples):
    tokenizer, seen = loaded(PICO), 0
    for tokens, support in samples:
        assert tokens.shape == (1064,) and support.shape == (32,) and support.any()
        answer = tokenizer.decode(tokens[1024:]).partition("<eot>")[0].strip()
        history, asked = tokenizer.decode(tokens[:1024]), tokenizer.decode(tokens[960:1024])
        if "Look up:" not in asked and "Recall. The code" not in asked:
            continue  # several supports, or a story
        blocks = tokens[:1024].reshape(32, 32)[support]
        assert np.diff(np.flatnonzero(support)).max(initial=1) == 1  # one statement
        there = tokenizer.decode(blocks.reshape(-1))
        assert answer and answer in there and answer in history
        cue = "Look up:" if "Look up:" in asked else "The code of"
        key = asked.rpartition(cue)[2].rpartition(" ")[0].strip()
        assert key in there
        found = dict(NEEDLE.findall(there)) | dict(PAIR.findall(there))
        assert found.get(key, answer) == answer
        seen += 1
    assert seen > 15


def test_words_are_those_of_the_training_split(samples):
    tokenizer = loaded(PICO)
    for tokens, _ in samples:
        for key, _ in NEEDLE.findall(tokenizer.decode(tokens)):
            adjective, _, noun = key.rpartition(" ")
            if noun.isalpha() and adjective.isalpha():
                assert words.split_of(noun) == words.split_of(adjective) == "train"


def test_the_command_writes_what_the_lens_is_trained_on(tmp_path, capsys):
    for split, name in (("train", "train"), ("validation", "valid")):
        given = [f"--out={tmp_path}/questions/{name}", f"--tokenizer={PICO}", "--count=3"]
        given += ["--length=512", "--tail=8", f"--split={split}", "--processes=1"]
        assert main(given) == 0
    with pytest.raises(UserError, match="no corpus"):
        domains_of(tmp_path)  # questions are no domain
    made, valid = (Questions.load(tmp_path / "questions" / name) for name in ("train", "valid"))
    assert made.tokens.shape == (3, 520) and made.tokens.dtype == np.uint16
    assert not np.array_equal(made.tokens, valid.tokens)
    size = dict(length=512, tail=5, block=32, batch=6, seed=1, step=2)
    tokens, distance, support = made.draw(**size)
    assert tokens.shape == (6, 517) and support.shape == distance.shape == (6, 16)
    assert (distance[:, -1] == 0).all() and (distance[:, 0] >= 15).all()
    assert distance.max() <= 15 * FARTHEST and len(set(distance[:, 0])) > 3
    part = made.draw(**size, rows=slice(2, 4))
    for some, every in zip(part, (tokens, distance, support), strict=True):
        np.testing.assert_array_equal(some, every[2:4])
    with pytest.raises(UserError, match="--length=1024"):
        made.draw(**size | {"length": 1024})
    with pytest.raises(UserError, match="no questions"):
        Questions.load(tmp_path)
    assert main([f"--out={tmp_path}/x", f"--tokenizer={PICO}", "--count=1", "--length=33"]) == 2
    assert "whole blocks" in capsys.readouterr().err
    (tmp_path / "afile").write_text("mine")
    for wrong, says in ((f"--out={tmp_path}/afile/x", "cannot be made"), ("--count=x", "--count")):
        assert main([f"--out={tmp_path}/x", f"--tokenizer={PICO}", "--count=1", wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and says in line
