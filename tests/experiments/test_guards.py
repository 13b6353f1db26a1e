"""Guards against fooling ourselves: laws that every method of a comparison must keep."""

import dataclasses
import functools

import numpy as np
import pytest

from experiments.methods import METHODS, Method, Protocol, Scorer
from mctx.errors import UserError
from mctx.models.base import logits
from mctx.models.wrapped import read
from mctx.runtime import reading
from tests.runtime import small

BLOCK = small.BLOCK
PROTOCOL = Protocol(budget=24, recent=2, sink=1, candidates=6)
SUPPORT = ((6, 9),)
EVERY = [name for name in METHODS if name != "full"]
BLIND = [name for name in EVERY if not METHODS[name].sees_future]


@functools.cache
def history(seed: int = 0, blocks: int = 14) -> np.ndarray:
    """Short enough for full attention: 56 tokens of a window of 64."""
    return small.text(blocks * BLOCK, seed)


def scorer(seed: int = 0, protocol: Protocol = PROTOCOL) -> Scorer:
    return Scorer(small.opened(), history(seed), protocol, small.reader())


@functools.cache
def shared() -> Scorer:
    return scorer()


def tail(seed: int = 100, length: int = 5) -> np.ndarray:
    return small.text(length, seed)


def changed(tokens: np.ndarray, where: int) -> np.ndarray:
    other = tokens.copy()
    other[where] = 1 + other[where] % (small.VOCABULARY - 1)
    return other


def plain(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NLL of tokens[1:] and the likeliest tokens, from the base's own logits: [n - 1] each."""
    opened = small.opened()
    entries = np.concatenate([opened.model.base.prefix, tokens]).astype(np.int32)[None]
    positions = np.arange(entries.shape[1], dtype=np.int32)[None]
    hidden = read(opened.model, opened.params, entries, positions).hidden[0]
    scores = np.asarray(logits(opened.params["base"], hidden), np.float64)
    scores = scores[len(opened.model.base.prefix) : -1]
    total = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)) + scores.max(-1)
    return total - scores[np.arange(len(scores)), tokens[1:]], scores.argmax(-1)


def test_full_attention_is_the_plain_base_and_targets_are_the_next_tokens():
    answer = shared().answer("full", tail(), 2)
    nll, best = plain(np.concatenate([history(), tail()]))
    np.testing.assert_allclose(answer.nll, nll[-len(answer.nll) :], atol=1e-4)
    assert np.array_equal(answer.greedy, best[-len(answer.nll) :] == tail()[1:])


def test_full_attention_past_the_trained_window_is_not_told():
    one = Scorer(small.opened(), history(blocks=16), PROTOCOL, small.reader())
    assert one.nll("full", tail()) is None
    assert one.continuation("full", tail()[:1], 2) is None
    # Of 64 positions the prefix takes 2 and this history 56: what follows it counts as well.
    most = small.opened().model.base.window - len(small.opened().model.base.prefix) - 56
    assert len(shared().nll("full", tail(length=most + 1))) == most
    assert shared().nll("full", tail(length=most + 2)) is None
    assert len(shared().continuation("full", tail()[:1], most)) == most
    assert shared().continuation("full", tail()[:1], most + 1) is None


def test_no_method_takes_another_budget_where_its_own_is_too_small():
    one = scorer(protocol=dataclasses.replace(PROTOCOL, budget=2 * BLOCK))
    for name in ("random", "hindsight", "hindsight crossfit"):
        assert one.nll(name, tail()) is None
    with pytest.raises(UserError, match="needs settings"):
        one.focused(None, None)


@pytest.mark.parametrize("name", BLIND)
def test_a_token_is_scored_by_what_comes_before_it(name):
    """Position i of the result is tail[i + 1]: it changes with that token, none before it does."""
    before, after = (shared().nll(name, t) for t in (tail(), changed(tail(), 3)))
    assert len(before) == len(tail()) - 1
    np.testing.assert_array_equal(before[:2], after[:2])
    assert before[2] != after[2] and before[3] != after[3]


@pytest.mark.parametrize("name", ["recent", "random", "lens", "two heads", "uniform"])
def test_greedy_decoding_says_what_the_answer_calls_greedy(name):
    said = shared().continuation(name, tail()[:1], 4)
    assert shared().answer(name, np.append(tail()[:1], said), 4).greedy.all()


def test_every_method_is_judged_on_the_same_continuation(monkeypatch):
    seen = {}

    def watch(model, learned, params, buffer, rows, tokens, bias):
        seen.setdefault(name, []).append(np.asarray(tokens))
        return judge(model, learned, params, buffer, rows, tokens, bias)

    judge = reading.judge
    monkeypatch.setattr(reading, "judge", watch)
    for name in METHODS:
        assert len(shared().nll(name, tail(), SUPPORT)) == len(tail()) - 1
    assert list(seen) == list(METHODS)
    for tokens in sum(seen.values(), []):
        np.testing.assert_array_equal(tokens[: len(tail())], tail())
        assert not tokens[len(tail()) :].any()  # only padding, which comes after everything


@pytest.mark.parametrize("budget", [24, 18])
def test_no_method_shows_more_than_the_budget_whatever_it_is(budget):
    """Counted in rows of the buffers that the base reads, over all heads that run."""
    protocol = dataclasses.replace(PROTOCOL, budget=budget)
    one = shared() if protocol == PROTOCOL else scorer(protocol=protocol)
    # Another budget compiles everything anew: the methods of each kind, not all of them.
    names = EVERY if protocol == PROTOCOL else ("recent", "sinks+recent", "random", "hindsight")
    spent = {}
    for name in names:
        method = METHODS[name]
        for standing in one.standings(name, tail(), SUPPORT):
            assert standing.entries <= budget, name
            assert len(standing.buffer.count) == len(np.asarray(standing.tail.heads))
            assert standing.entries == np.asarray(standing.buffer.count).sum()
            spent.setdefault(name, []).append(standing.entries)
            assert method.sees_future or len(spent[name]) == 1
    # Methods that choose blocks by a rank fill it to the last block.
    for name in ("random", "bm25", "cosine", "attention", "query gradient"):
        assert name not in spent or spent[name] == [budget // BLOCK * BLOCK], name
    assert spent["recent"] == spent["sinks+recent"] == [budget]


GISTS = "mean-pooled gists", "uniform", "lens+gists"  # of which the prefix is the only sink


def test_sinks_and_recent_blocks_are_counted_and_shown_alike():
    for name in EVERY:
        if METHODS[name].stand.__module__.endswith("plain"):
            continue
        shown = set(shared().layout(name, tail(), SUPPORT))
        sinks = set() if name in GISTS else {0}
        assert {12, 13} | sinks <= shown, name


@pytest.mark.parametrize("name", [n for n in EVERY if n != "handed"])
def test_no_method_sees_the_future_unless_it_says_so(name):
    """Another continuation, another layout: only for those that are marked."""
    seeds = range(200, 206)
    layouts = {tuple(shared().layout(name, tail(seed))) for seed in seeds}
    assert (len(layouts) > 1) == METHODS[name].sees_future


@pytest.mark.parametrize("name", [n for n in EVERY if METHODS[n].sees_future])
def test_what_sees_the_future_continues_nothing(name):
    assert shared().layout(name) is None
    assert shared().continuation(name, tail()[:1], 2) is None


@pytest.mark.parametrize("name", ["hindsight crossfit", "leave-one-in crossfit"])
def test_cross_fitting_never_chooses_by_the_token_it_scores(name):
    """Tokens at odd places change: what stands where even ones are chosen by stays as it was."""
    standings = [list(shared().standings(name, t)) for t in (tail(), changed(tail(), 4))]
    (even, odd), (even_too, odd_too) = standings
    assert np.array_equal(even.scored, ~odd.scored) and (even.scored | odd.scored).all()
    scored_on_it = odd if odd.scored[3] else even
    same = odd_too if odd.scored[3] else even_too
    np.testing.assert_array_equal(scored_on_it.detailed, same.detailed)


def test_nothing_leaks_between_documents():
    """Two documents, scored in turns through one reader, say what each says alone."""
    names = [name for name in METHODS if name != "handed"]
    alone = {seed: {n: scorer(seed).nll(n, tail()) for n in ("lens", "bm25")} for seed in (0, 1)}
    pair = {seed: scorer(seed) for seed in (0, 1)}
    turns = {seed: {} for seed in pair}
    for name in names:
        for seed, one in pair.items():
            turns[seed][name] = one.nll(name, tail())
    for seed, one in pair.items():
        for name in alone[seed]:
            np.testing.assert_allclose(turns[seed][name], alone[seed][name], atol=1e-5)
        for name in reversed(names):  # and in another order, each as before
            np.testing.assert_allclose(one.nll(name, tail()), turns[seed][name], atol=1e-5)
    assert any(not np.array_equal(turns[0][n], turns[1][n]) for n in names)


def test_a_method_that_peeked_would_be_caught(monkeypatch):
    """The guard on the future can fail: a method that lies about itself is given no tail."""
    honest = METHODS["hindsight"]
    monkeypatch.setitem(METHODS, "liar", Method(honest.stand))
    with pytest.raises((TypeError, AttributeError)):
        shared().nll("liar", tail())
