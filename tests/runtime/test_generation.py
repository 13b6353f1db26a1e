"""Generation: what is drawn, when it ends, and that it is read like any other text."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.runtime import decoding, reading
from mctx.runtime.generation import Words
from mctx.runtime.reading import next_logits
from mctx.runtime.sampling import draw
from tests.runtime.small import Compilations, opened, session, text

PROMPT = "HELLO WORLD".replace(" ", "B")
LENGTH = 14
TAIL = text(9, seed=3)


def said(**how):
    return session().generate(PROMPT, LENGTH, **how)


def letters(string):
    return opened().tokenizer.encode(string)


@pytest.fixture(scope="module")
def greedy():
    return said()


# -- what is drawn -----------------------------------------------------------------------------


def test_greedy_is_the_same_every_time_and_for_every_seed(greedy):
    assert len(greedy) == LENGTH
    assert said(seed=5) == greedy


def test_greedy_says_what_is_likeliest(greedy):
    made = session()
    tokens = letters(PROMPT + greedy)
    made.read_tokens(tokens[: len(PROMPT)])
    for token in tokens[len(PROMPT) :]:
        scores = next_logits(made.params["base"], made.tail.last)
        assert int(jnp.argmax(scores)) == token
        nll = made.read_tokens(token[None])
        np.testing.assert_allclose(nll, -jax.nn.log_softmax(scores)[token], atol=1e-5)


def test_a_seed_is_remade_and_another_differs():
    one, same, other = (said(temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_one_token_to_choose_from_is_the_greedy_one(greedy):
    assert said(temperature=2.0, top_k=1, seed=4) == greedy
    assert said(temperature=2.0, top_p=1e-6, seed=4) == greedy


def many(logits, kind="cut", temperature=1.0, top_k=0, top_p=1.0):
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = jax.vmap(lambda key: draw(kind, key, logits, temperature, top_k, top_p))(keys)
    return set(drawn.tolist())


def test_top_k_and_top_p_cut_the_unlikely():
    logits = jnp.log(jnp.array([0.05, 0.5, 0.3, 0.15]))
    assert many(logits, "plain") == many(logits) == {0, 1, 2, 3}
    assert many(logits, top_k=2) == {1, 2}
    assert many(logits, top_p=0.6) == {1, 2}
    assert many(logits, top_p=0.4) == {1}
    assert many(logits, top_k=2, top_p=0.63) == {1, 2}  # of what top_k leaves: .625 and .375
    assert many(logits, top_k=2, top_p=0.62) == {1}
    assert many(logits, "greedy") == {1}


drawn_of = jax.jit(draw, static_argnums=0)


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.integers(0, 99))
def test_cutting_all_but_one_is_greedy_and_cutting_none_is_plain_even_with_ties(logits, seed):
    key, logits = jax.random.key(seed), jnp.array(logits, jnp.float32)
    best = drawn_of("greedy", key, logits, 1.0, 0, 1.0)
    assert drawn_of("cut", key, logits, 2.0, 1, 1.0) == best
    assert drawn_of("cut", key, logits, 2.0, 0, 1e-9) == best
    assert drawn_of("cut", key, logits, 2.0, 9, 1.0) == drawn_of("plain", key, logits, 2.0, 0, 1.0)


# -- how it is streamed ------------------------------------------------------------------------


def test_pieces_join_to_the_whole(greedy):
    assert "".join(session().stream(PROMPT, LENGTH)) == greedy


def test_steps_are_under_way_while_a_token_is_told_and_none_waits_inside_a_block(monkeypatch):
    made, steps = session(), itertools.count(1)
    made.read_tokens(letters(PROMPT[:8]))  # at a block's border
    begun = []
    monkeypatch.setattr(decoding.Drawing, "_keep", lambda *_: iter(()))
    plain = reading.say

    def say(*arguments):
        begun.append(next(steps))
        return plain(*arguments)

    monkeypatch.setattr(reading, "say", say)
    stream = made.stream(tokens=made.due)
    told = [len(begun) for _ in stream]
    assert made.due == 4 and told == [3, 4, 4, 4]


def test_settings_and_seeds_are_data_of_one_compiled_step():
    made = session()
    made.generate(PROMPT, 3 * LENGTH, temperature=1.0, top_k=3)
    counted = Compilations()
    made.generate(tokens=8, temperature=0.5, top_k=9, top_p=0.8, seed=7)
    assert counted.count == 0


def test_what_was_said_is_history(greedy):
    made = session()
    made.generate(PROMPT, LENGTH)
    length = made.tree.length
    assert length == (len(PROMPT) + LENGTH) // 4 * 4
    np.testing.assert_array_equal(made.tree.tokens(0, length), letters(PROMPT + greedy)[:length])


def test_an_ingested_history_is_continued_like_a_prompt(greedy):
    made = session()
    made.ingest(PROMPT)
    assert made.generate(tokens=LENGTH) == greedy


# -- how it ends -------------------------------------------------------------------------------


def as_if_read(made, string):
    """The session stands where one stands that has read all this and nothing behind it."""
    plain = session()
    plain.read_tokens(letters(string))
    np.testing.assert_allclose(made.peek(TAIL), plain.peek(TAIL), atol=1e-5)
    assert made.length == plain.length
    np.testing.assert_allclose(made.tail.last, plain.tail.last, atol=1e-4)


def test_it_ends_before_a_stop_string_and_what_was_drawn_behind_is_forgotten(greedy):
    for start in (4, 6):  # inside a block, and across its border
        stop, made = greedy[start : start + 3], session()
        assert made.generate(PROMPT, LENGTH, stop=("?", stop)) == greedy[: greedy.index(stop)]
        as_if_read(made, PROMPT + greedy[: greedy.index(stop) + 3])
    assert said(stop=(greedy[2] + "?", greedy[-1] + "?")) == greedy
    assert said(stop=greedy[5:7]) == greedy[: greedy.index(greedy[5:7])]


def test_it_ends_with_the_text(greedy, monkeypatch):
    made = session()
    monkeypatch.setattr(type(opened().tokenizer), "eot_id", int(letters(greedy[6])[0]))
    end = greedy.index(greedy[6])
    assert made.generate(PROMPT, LENGTH) == greedy[:end]
    as_if_read(made, PROMPT + greedy[:end])


def test_who_leaves_a_stream_leaves_what_was_said(greedy):
    made = session()
    stream = made.stream(PROMPT, LENGTH)
    first = next(stream) + next(stream)
    as_if_read(made, PROMPT + first)  # any other use ends the stream
    assert list(stream) == []
    assert greedy.startswith(first) and made.generate(tokens=5) == greedy[2:7]


TOKENS = ["a", "b", "ab", "aab", "é".encode()[:1], "é".encode()[1:], "ba"]


def joined(ids):
    """As a byte-level tokenizer decodes: a piece of a character is a replacement character."""
    parts = (TOKENS[i] for i in ids)
    data = b"".join(one if isinstance(one, bytes) else one.encode() for one in parts)
    return data.decode(errors="replace")


@given(
    st.lists(st.integers(0, len(TOKENS) - 1), max_size=80),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_never_said_however_tokens_cut_it(ids, stop):
    words, pieces = Words(joined, stop), []
    for i in ids:
        if words.ended:
            break
        pieces.append(words.add(i))
        assert not any(one in "".join(pieces) for one in stop)
    pieces.append(words.rest())
    whole = joined(ids).rstrip("\N{REPLACEMENT CHARACTER}")
    found = "".join(pieces)
    assert not any(one in found for one in stop)
    assert whole.startswith(found) and (words.ended or found == whole)


def test_the_space_before_a_first_word_is_said_behind_a_history():
    """Some tokenizers write no space in front of a text's first word."""
    words = ["once", "upon", "a", "time"]

    def decode(ids):
        return " ".join(words[i] for i in ids)

    behind, alone = Words(decode, before=[0]), Words(decode)
    assert "".join(behind.add(i) for i in (1, 2, 3)) == " upon a time"
    assert "".join(alone.add(i) for i in (1, 2, 3)) == "upon a time"


def test_a_session_tells_its_last_tokens_those_that_wait_included():
    made, ids = session(), text(27)
    assert len(made.recent(16)) == 0
    made.ingest(ids)
    np.testing.assert_array_equal(made.recent(16), ids[-16:])
    np.testing.assert_array_equal(made.recent(99), ids)


def test_characters_in_bytes_are_whole_wherever_ids_are_let_go():
    """A run of bytes may be written only where it is valid as a whole, as SentencePiece does."""

    def fused(ids):
        data = bytes(ids)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(data)

    for seed in range(50):
        signs = np.random.default_rng(seed).choice(list("a\né€\N{GRINNING FACE}"), 60)
        words, whole = Words(fused), "".join(signs)
        assert "".join(words.add(i) for i in whole.encode()) + words.rest() == whole


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(temperature=-1.0), "temperature must be"),
        (dict(temperature=float("nan")), "temperature must be"),
        (dict(top_k=-1), "top_k must be"),
        (dict(top_k=2.5), "top_k must be"),
        (dict(top_p=0.0), "top_p must lie"),
        (dict(seed=-1), "seed must be"),
        (dict(tokens=-1), "tokens must be"),
        (dict(stop=("", "a")), "stop string"),
        (dict(stop=3), "stop string"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(wrong, words):
    with pytest.raises(UserError, match=words):
        session().stream(PROMPT, **wrong)
