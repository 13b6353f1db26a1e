"""What a harness is told are our own numbers, and no request sees another; no harness is needed."""

import numpy as np
import pytest

from experiments import score
from experiments.peers.answers import Answers
from mctx.errors import UserError
from mctx.runtime import Session, SessionConfig
from tests.experiments import tiny_checkpoint

BUDGET = 40
TEXT = tiny_checkpoint.text(45)
GREEDY = {"until": [], "max_gen_toks": 6, "temperature": 0.0, "do_sample": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_checkpoint.write(tmp_path_factory.mktemp("answers") / "bundle"))


@pytest.fixture(scope="module")
def answers(bundle):
    return {name: Answers(bundle, name, BUDGET) for name in score.METHODS}


def own(one, ids):
    """NLL of a text's ids but the first, by experiments.score."""
    return score.METHODS[one.method][0](one.opened, ids, BUDGET)


@pytest.mark.parametrize("method", score.METHODS)
def test_likelihoods_are_those_of_score(answers, method):
    one = answers[method]
    ids = one.encode(TEXT)
    rolled, whole = one.nll(ids), own(one, ids)
    np.testing.assert_allclose(rolled[1:], whole, atol=1e-4)
    value, _ = one.likelihood(ids[:30], ids[30:])
    assert value == pytest.approx(-whole[29:].sum(), abs=1e-3)
    assert value != pytest.approx(-whole[28:-1].sum(), abs=1e-2)  # targets off by one
    np.testing.assert_array_equal(one.nll(ids), rolled)  # what was asked between leaves no trace
    assert len(one.nll(ids[:0])) == 0


def test_the_first_token_is_predicted_by_the_prefix_alone(answers):
    word = answers["full"].encode(TEXT)[:1]
    rolled = answers["full"].nll(word)[0]
    for one in answers.values():
        assert one.likelihood([], word)[0] == pytest.approx(-rolled, abs=1e-4)
    assert len({round(answers["full"].nll(np.array([i]))[0], 4) for i in range(5)}) > 1


@pytest.mark.parametrize("method", score.METHODS)
def test_what_is_generated_is_what_is_likeliest(answers, method):
    one = answers[method]
    said = one.continuation(TEXT, GREEDY)
    words, ids = said.split(), one.encode(TEXT)
    assert words
    assert one.likelihood(ids, one.encode(said))[1]
    other = " ".join([*words[:-1], "w0" if words[-1] != "w0" else "w1"])
    assert not one.likelihood(ids, one.encode(other))[1]
    cut = one.continuation(TEXT, GREEDY | {"until": [words[1]]})
    assert cut == said[: said.index(words[1])]


def test_focus_is_a_session(answers):
    one = answers["focus"]
    ids = one.encode(TEXT)
    session = Session(one.opened, "memory://answers-test", SessionConfig(budget=BUDGET))
    np.testing.assert_allclose(one.nll(ids)[1:], session.predict(ids)[1:], atol=1e-5)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"method": "lens"}, "must be one of full"),
        ({"method": "window", "budget": 4}, "at least 8"),
    ],
)
def test_settings_that_mean_nothing_are_refused(bundle, arguments, says):
    with pytest.raises(UserError, match=says):
        Answers(bundle, **arguments)
