import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks.sample import make
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import EVENT, whereabouts

PICO = Tokenizer.load("data/checkpoints/pico")


@pytest.mark.parametrize("hops", [1, 2, 3])
@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(["train", "test"]))
def test_supports_are_enough_and_each_is_needed(hops, seed, split):
    sample = make(f"facts_{hops}", PICO, 1500, seed, split=split)
    text = PICO.decode(sample.prompt)
    question = re.findall(r"Where [^?]*\?", text)[-1]
    answer = PICO.decode(sample.continuation).strip()
    story = [found[0] for found in EVENT.finditer(text)]
    assert len(story) == sample.facts["events"]
    assert whereabouts(story, question) == answer  # the whole story tells it
    held = [PICO.decode(sample.prompt[a:b]).strip() for a, b in sample.support]
    assert len(held) == hops and all(sentence in story for sentence in held)
    assert whereabouts(held, question) == answer  # so do the supports alone
    for gone in range(hops):  # and nothing less
        assert whereabouts(held[:gone] + held[gone + 1:], question) != answer


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_who_acts_can_act(hops):
    """Nobody takes what is elsewhere or held, drops what they have not, or gives to the absent."""
    for seed in range(15):
        text = PICO.decode(make(f"facts_{hops}", PICO, 2000, seed, events=60).prompt)
        at, holder, lying = {}, {}, {}
        for found in EVENT.finditer(text):
            who = found[1]
            if found["place"]:
                assert at.get(who) != found["place"]
                at[who] = found["place"]
            elif thing := found["taken"]:
                assert thing not in holder and lying.get(thing, at[who]) == at[who]
                holder[thing] = who
            elif thing := found["dropped"]:
                assert holder.pop(thing) == who
                lying[thing] = at[who]
            else:
                assert holder[found["given"]] == who and at[who] == at[found["whom"]]
                holder[found["given"]] = found["whom"]


def test_answers_are_not_always_the_latest_place():
    """A reader who says the last place of the text must be wrong most of the time."""
    for hops in (1, 2, 3):
        hits = 0
        for seed in range(60):
            sample = make(f"facts_{hops}", PICO, 1024, seed)
            places = re.findall(r"(?:went|walked) to the ([a-z]+)", PICO.decode(sample.prompt))
            hits += places[-1] == PICO.decode(sample.continuation).strip()
        assert hits < 30, hops
