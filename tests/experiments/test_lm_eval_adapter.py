"""The harness gets our own numbers; no request sees another."""

import numpy as np
import pytest

from experiments import score
from mctx.runtime import Session, SessionConfig
from tests.experiments import tiny_checkpoint

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from experiments.peers.lm_eval_adapter import MegaContextLM  # noqa: E402
from mctx.errors import UserError  # noqa: E402

BUDGET = 40
TEXT = tiny_checkpoint.text(45)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_checkpoint.write(tmp_path_factory.mktemp("lm") / "bundle"))


@pytest.fixture(scope="module")
def models(bundle):
    return {name: MegaContextLM(bundle, name, BUDGET) for name in score.METHODS}


def asked(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def own(model, text):
    """NLL of a text's tokens but the first, by experiments.score."""
    return score.METHODS[model.method][0](model.opened, model.opened.tokenizer.encode(text), BUDGET)


@pytest.mark.parametrize("method", score.METHODS)
def test_likelihoods_are_those_of_score(models, method):
    model = models[method]
    cut = TEXT.index(" ", 130)
    context, rest = TEXT[:cut], TEXT[cut:]
    known = len(model.tok_encode(context))
    (found,) = model.loglikelihood(asked("loglikelihood", (context, rest)))
    assert found[0] == pytest.approx(-own(model, TEXT)[known - 1 :].sum(), abs=1e-3)
    rolled = model.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,), (rest,), (TEXT,)))
    first = model.nll(model.opened.tokenizer.encode(TEXT))[0]
    assert rolled[0] == pytest.approx(-own(model, TEXT).sum() - first, abs=1e-3)
    assert rolled[0] == rolled[2]  # what was asked between leaves no trace


def test_the_first_token_is_predicted_by_the_prefix_alone(models):
    word = TEXT.split()[0]
    alone = {
        name: m.loglikelihood(asked("loglikelihood", ("", word))) for name, m in models.items()
    }
    rolled = models["full"].loglikelihood_rolling(asked("loglikelihood_rolling", (word,)))[0]
    for ((value, _),) in alone.values():
        assert value == pytest.approx(rolled, abs=1e-4)
    assert len({round(models["full"].nll(np.array([i]))[0], 4) for i in range(5)}) > 1


@pytest.mark.parametrize("method", score.METHODS)
def test_what_is_generated_is_what_is_likeliest(models, method):
    model = models[method]
    settings = {"until": [], "max_gen_toks": 6, "temperature": 0.0, "do_sample": False}
    (said,) = model.generate_until(asked("generate_until", (TEXT, settings)))
    assert said
    ((_, greedy),) = model.loglikelihood(asked("loglikelihood", (TEXT.rstrip(), " " + said)))
    assert greedy
    words = said.split()
    ((_, greedy),) = model.loglikelihood(
        asked("loglikelihood", (TEXT.rstrip(), " " + " ".join([*words[:-1], "w0"])))
    )
    assert greedy == (words[-1] == "w0")
    stop = settings | {"until": [words[1]]}
    (cut,) = model.generate_until(asked("generate_until", (TEXT, stop)))
    assert cut == said[: said.index(words[1])]


def test_focus_is_a_session(models):
    model = models["focus"]
    ids = model.opened.tokenizer.encode(TEXT)
    session = Session(model.opened, "memory://lm-eval-test", SessionConfig(budget=BUDGET))
    np.testing.assert_allclose(model.nll(ids)[1:], session.predict(ids)[1:], atol=1e-5)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"method": "lens"}, "must be one of full"),
        ({"method": "window", "budget": 4}, "at least 8"),
    ],
)
def test_settings_that_mean_nothing_are_refused(bundle, arguments, says):
    with pytest.raises(UserError, match=says):
        MegaContextLM(bundle, **arguments)
