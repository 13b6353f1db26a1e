"""Generation: what is drawn, when it ends, and that it is read like any other text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.runtime.generation import draw
from mctx.runtime.reading import next_logits
from tests.runtime.small import opened, session

PROMPT = "HELLO WORLD".replace(" ", "B")
LENGTH = 14


def said(**how):
    return session().generate(PROMPT, LENGTH, **how)


@pytest.fixture(scope="module")
def greedy():
    return said()


def test_greedy_is_the_same_every_time_and_for_every_seed(greedy):
    assert len(greedy) == LENGTH
    assert said(seed=5) == greedy


def test_greedy_says_what_is_likeliest(greedy):
    made = session()
    tokens = opened().tokenizer.encode(PROMPT + greedy)
    made.read_tokens(tokens[: len(PROMPT)])
    for token in tokens[len(PROMPT) :]:
        scores = next_logits(made.params["base"], made.tail.last)
        assert int(jnp.argmax(scores)) == token
        nll = made.read_tokens(token[None])
        np.testing.assert_allclose(nll, -jax.nn.log_softmax(scores)[token], atol=1e-5)


def test_a_seed_is_remade_and_another_differs():
    one, same, other = (said(temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_pieces_join_to_the_whole(greedy):
    assert "".join(session().stream(PROMPT, LENGTH)) == greedy


def test_it_ends_before_a_stop_string(greedy):
    stop = greedy[5:7]
    assert said(stop=("?", stop)) == greedy[: greedy.index(stop)]
    assert said(stop=(stop[0] + "?", greedy[-1] + "?")) == greedy


def test_what_was_said_is_history(greedy):
    made = session()
    made.generate(PROMPT, LENGTH)
    length = made.tree.length
    assert length == (len(PROMPT) + LENGTH) // 4 * 4
    whole = opened().tokenizer.encode(PROMPT + greedy)
    np.testing.assert_array_equal(made.tree.tokens(0, length), whole[:length])


def test_an_ingested_history_is_continued_like_a_prompt(greedy):
    made = session()
    made.ingest(PROMPT)
    assert made.generate(tokens=LENGTH) == greedy


def test_settings_out_of_range_are_refused():
    for wrong in (dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(tokens=-1)):
        with pytest.raises(UserError, match="temperature, top_k and tokens"):
            session().generate(PROMPT, **wrong)


def many(logits, **how):
    keys = jax.random.split(jax.random.key(0), 200)
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | how
    return {int(draw(key, logits, **how)) for key in keys}


def test_top_k_and_top_p_cut_the_unlikely():
    logits = jnp.log(jnp.array([0.05, 0.5, 0.3, 0.15]))
    assert many(logits) == {0, 1, 2, 3}
    assert many(logits, top_k=2) == {1, 2}
    assert many(logits, top_p=0.6) == {1, 2}
    assert many(logits, top_p=0.4) == {1}
    assert many(logits, temperature=0.0) == {1}
