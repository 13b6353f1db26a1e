"""The harness gets the numbers of `experiments.peers.answers`, in its own terms."""

import pytest

from experiments import score
from tests.experiments import tiny_checkpoint
from tests.experiments.test_answers import BUDGET, GREEDY, TEXT, own

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from experiments.peers.lm_eval_adapter import MegaContextLM  # noqa: E402


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    bundle = str(tiny_checkpoint.write(tmp_path_factory.mktemp("lm") / "bundle"))
    return {name: MegaContextLM(bundle, name, BUDGET) for name in score.METHODS}


def asked(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


@pytest.mark.parametrize("method", score.METHODS)
def test_likelihoods_are_those_of_score(models, method):
    model = models[method]
    cut = TEXT.index(" ", 130)
    context, rest = TEXT[:cut], TEXT[cut:]
    known, nll = len(model.tok_encode(context)), own(model.answers, model.answers.encode(TEXT))
    # A space at the end of the context belongs to what follows it.
    pairs = asked("loglikelihood", (context, rest), (context + " ", rest.lstrip()))
    for value, _ in model.loglikelihood(pairs):
        assert value == pytest.approx(-nll[known - 1 :].sum(), abs=1e-3)
    rolled = model.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,), (rest,), (TEXT,)))
    first = model.answers.nll(model.answers.encode(TEXT))[0]
    assert rolled[0] == rolled[2] == pytest.approx(-nll.sum() - first, abs=1e-3)


def test_a_text_without_context_is_a_whole_text(models):
    for model in models.values():
        ((value, _),) = model.loglikelihood(asked("loglikelihood", ("", TEXT)))
        rolled = model.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,)))
        assert value == pytest.approx(rolled[0], abs=1e-3)


@pytest.mark.parametrize("method", score.METHODS)
def test_what_is_generated_is_what_is_likeliest(models, method):
    (said,) = models[method].generate_until(asked("generate_until", (TEXT, GREEDY)))
    assert said == models[method].answers.continuation(TEXT, GREEDY)
    pair = (TEXT.rstrip(), " " + said)
    ((_, greedy),) = models[method].loglikelihood(asked("loglikelihood", pair))
    assert greedy
