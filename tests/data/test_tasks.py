import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data.tasks import words
from data.tasks.assembly import occurs, prompt_length
from data.tasks.sample import FAMILIES, NAMES, encoder_of, make, open_haystack, rule_score
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import NEEDLE, PAIR, names_of

PICO = Tokenizer.load("data/checkpoints/pico")
# Answers of these stand nowhere but in their support; the places of a story are said often.
ALONE = [name for name in NAMES if not name.startswith("facts")]
NEEDLES = [name for name in NAMES if name.startswith("niah") or name in ("distractors", "edits")]
some_seed = st.integers(0, 2**31)


def text_of(sample, tokenizer=PICO):
    return tokenizer.decode(sample.prompt)


def without_support(sample, tokenizer=PICO):
    """The prompt's text with a mark where each supporting statement was."""
    parts, done = [], 0
    for start, stop in sorted(sample.support):
        parts.append(tokenizer.decode(sample.prompt[done:start]))
        done = stop
    return " # ".join([*parts, tokenizer.decode(sample.prompt[done:])])


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """A text of its own, with lines and sentences, and what `open_haystack` makes of it."""
    file = tmp_path_factory.mktemp("prose") / "story.txt"
    file.write_text("\n\n".join(
        f"Chapter {n}. They said that it would rain! Nobody came, though the {n} bells rang.\n"
        f"    def bell_{n}(tone):\n        return tone * {n}"
        for n in range(300)
    ))
    return open_haystack(encoder_of(PICO), str(file))


@pytest.mark.parametrize("family", NAMES)
@settings(max_examples=8)
@given(
    some_seed, st.integers(1024, 3000), st.sampled_from([16, 32, 64]),
    st.none() | st.floats(0, 1), st.sampled_from(["train", "test"]),
)
def test_every_sample_keeps_the_laws(family, seed, length, block, depth, split):
    sample = make(family, PICO, length, seed, depth=depth, block=block, split=split)
    n = len(sample.prompt)
    assert n == prompt_length(length, block) and n % block == 1 and length - block < n <= length
    assert sample.prompt.dtype == np.int32 and sample.family == family
    assert 0 <= sample.depth <= 1
    spans = [sample.prompt[start:stop] for start, stop in sample.support]
    assert all(any(occurs(answer, span) for span in spans) for answer in sample.answers)
    assert np.array_equal(sample.candidates[0], sample.continuation)
    said = [PICO.decode(candidate) for candidate in sample.candidates]
    assert len(set(said)) == len(said) >= 5
    assert said[0] == ",".join(PICO.decode(answer) for answer in sample.answers)
    if family in ALONE:
        rest = without_support(sample)
        assert not any(
            re.search(rf"\b{PICO.decode(answer).strip()}\b", rest) for answer in sample.answers
        )


@pytest.mark.parametrize("family", NAMES)
def test_a_sample_is_a_function_of_its_seed(family):
    first, again, other = (make(family, PICO, 1500, seed) for seed in (7, 7, 8))
    assert PICO.decode(first.continuation) != PICO.decode(other.continuation)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_equal(one, two)


@pytest.mark.parametrize("family", [name for name in NAMES if name != "edits"])
def test_text_encoded_at_once_has_the_tokens_of_its_pieces(family):
    sample = make(family, PICO, 1500, 3, **({"examples": 0} if family in ("vt", "cwe") else {}))
    whole = PICO.encode(text_of(sample))
    same = len(sample.prompt) - 32  # hay may begin amid a word, which alone is cut otherwise
    np.testing.assert_array_equal(whole[-same:], sample.prompt[-same:])
    going_on = PICO.encode(text_of(sample) + PICO.decode(sample.continuation))
    np.testing.assert_array_equal(going_on[len(whole):], sample.continuation)


def test_pieces_fit_into_a_text_as_they_do_into_noise(prose):
    for seed in range(5):
        sample = make("niah_multikey_1", PICO, 3000, seed, haystack=prose)
        whole = PICO.encode(text_of(sample))
        np.testing.assert_array_equal(whole[-2900:], sample.prompt[-2900:])
        # Needles stand between sentences or at the end of lines, never within words.
        assert all(
            re.search(r"\S$", before) and re.match(r"\s|$", after)
            for before, after in re.findall(r"(.) The code of [a-z ]+ is \d+\.(.)", text_of(sample))
        )


@pytest.mark.parametrize("family", NEEDLES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_needles_are_found_by_reading(family, split):
    for seed in range(4):
        sample = make(family, PICO, 1500, seed, split=split)
        text, said = text_of(sample), PICO.decode(sample.continuation)
        codes = {}
        for key, value in NEEDLE.findall(text):
            codes.setdefault(key, []).append(value)
        keys, = re.findall(r"The codes? of ((?:(?! is ).)*) (?:is|are)$", text)
        asked = re.split(", | and ", keys)
        assert said.strip().split(", ") == [value for key in asked for value in codes[key]]
        held = [PICO.decode(sample.prompt[a:b]) for a, b in sample.support]
        wanted = [f" The code of {key} is {value}." for key in asked for value in codes[key]]
        assert held == wanted


def test_rulers_parameters_say_what_the_text_holds():
    def codes(**parameters):
        sample = make("niah_single_2", PICO, 2048, 5, **parameters)
        return sample, NEEDLE.findall(text_of(sample))

    assert len(codes()[1]) == 1
    sample, found = codes(num_k=6)
    assert len({key for key, _ in found}) == 6 and sample.facts["in_text"] == 4
    sample, found = codes(num_k=2, num_v=3)
    assert Counter(key for key, _ in found).most_common() == [
        (key, 3) for key in dict.fromkeys(key for key, _ in found)
    ]
    assert len(sample.answers) == len(sample.support) == 3
    sample, found = codes(num_q=3)
    assert len(sample.answers) == 3 and len({key for key, _ in found}) == 3
    assert re.fullmatch(r"[0-9a-f-]{36}", codes(type_k="uuids")[1][0][0])
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4.*", codes(type_v="uuids")[1][0][1])
    assert re.fullmatch(r"[a-z]+ [a-z]+", codes(type_v="words")[1][0][1])
    assert len(codes(digits=5)[1][0][1]) == 5
    only = make("niah_multikey_2", PICO, 2048, 5)
    statements = NEEDLE.findall(text_of(only))
    assert len(dict(statements)) == len(statements) == only.facts["pairs"] > 100


def test_which_needle_is_asked_for_cannot_be_guessed():
    places = Counter()
    for seed in range(80):
        sample = make("niah_multikey_1", PICO, 512, seed)
        values = [value for _, value in NEEDLE.findall(text_of(sample))]
        places[values.index(PICO.decode(sample.continuation).strip())] += 1
    assert min(places[place] for place in range(4)) >= 8  # 20 each, if all are alike


@pytest.mark.parametrize("hops,chains", [(4, 1), (2, 3), (1, 2)])
def test_chains_of_variables_are_followed(hops, chains):
    for seed in range(3):
        sample = make("vt", PICO, 1024, seed, num_hops=hops, num_chains=chains)
        text = text_of(sample)
        value = re.findall(r"names that are (\d+) are$", text)[0]
        names = PICO.decode(sample.continuation).strip().split(", ")
        assert names == names_of(text, value) and len(names) == hops + 1
        held = "".join(PICO.decode(sample.prompt[a:b]) for a, b in sample.support)
        assert names_of(held, value) == names


@pytest.mark.parametrize("length,common,uncommon", [(2048, 6, 1), (6000, 30, 3)])
def test_common_words_are_counted(length, common, uncommon):
    sample = make("cwe", PICO, length, 1)
    text = text_of(sample)
    count = Counter(re.findall(r"\d+\. ([a-z]+)", text[text.rindex(" 1. "):]))
    frequent = [word for word, number in count.items() if number == common]
    assert PICO.decode(sample.continuation).strip().split(", ") == sorted(frequent)
    assert len(frequent) == 10 and set(count.values()) == {common, uncommon}
    assert len(sample.support) == 10 * common
    assert sample.support[0][0] < len(sample.prompt) / 2  # the list fills the prompt


def test_frequent_words_are_counted():
    sample = make("fwe", PICO, 2048, 1)
    count = Counter(word for word in text_of(sample).split() if re.fullmatch("[a-z]{6}", word))
    ranked = count.most_common(4)
    assert PICO.decode(sample.continuation).strip().split(", ") == [word for word, _ in ranked[:3]]
    numbers = [number for _, number in ranked]
    assert numbers == sorted(set(numbers), reverse=True)
    # Zipf with exponent 2, the dots at its head: ranks 2 and 4 of the text.
    assert text_of(sample).split().count("...") == pytest.approx(4 * numbers[0], rel=0.02)
    assert numbers[0] == pytest.approx(4 * numbers[2], rel=0.05)


@settings(max_examples=8)
@given(some_seed, st.integers(0, 60))
def test_distractors_look_alike(seed, number):
    sample = make("distractors", PICO, 2048, seed, distractors=number)
    keys = [key for key, _ in NEEDLE.findall(text_of(sample))]
    asked = re.findall(r"The code of ([a-z ]+) is$", text_of(sample))[0]
    assert len(set(keys)) == len(keys) == number + 1 == sample.facts["distractors"] + 1
    assert all(set(key.split()) & set(asked.split()) for key in keys)
    assert sum(key == asked for key in keys) == 1


def test_pairs_are_asked_for_by_position():
    pairs, places = [], []
    for depth in (0, 0.25, 0.5, 1):
        sample = make("kv", PICO, 1024, 2, depth=depth)
        found = PAIR.findall(text_of(sample))
        answer = PICO.decode(sample.continuation).strip()
        asked = re.findall(r"Look up: ([a-z ]+) =$", text_of(sample))[0]
        assert dict(found)[asked] == answer and len(found) == sample.facts["pairs"]
        assert found.index((asked, answer)) == sample.facts["position"]
        pairs.append(found)
        places.append(sample.facts["position"])
    assert pairs[1:] == pairs[:-1]  # only what is asked for moves
    assert places == [0, round((len(found) - 1) / 4), round((len(found) - 1) / 2), len(found) - 1]


@pytest.mark.parametrize("family", [name for name in NAMES if name not in ("cwe", "fwe")])
def test_depth_is_monotone_in_position(family):
    depths = np.linspace(0, 1, 6)
    made = [make(family, PICO, 2500, 11, depth=float(depth)) for depth in depths]
    firsts = [min(sample.support)[0] for sample in made]
    assert firsts == sorted(firsts) and firsts[0] < firsts[-1]
    assert [sample.depth for sample in made] == sorted(sample.depth for sample in made)
    if family.startswith(("niah", "distractors", "facts")):  # other statements count as text
        assert [sample.depth for sample in made] == pytest.approx(list(depths), abs=0.1)


@pytest.mark.parametrize("family", NAMES)
def test_wrong_candidates_say_what_they_promise(family):
    sample = make(family, PICO, 2048, 9)
    parts = [set(PICO.decode(c).strip().split(", ")) for c in sample.candidates]
    text = set(re.findall(r"[a-z0-9-]+", text_of(sample)))
    start = 2 if family == "edits" else 1  # the stale answer is neither
    near, far = np.split(np.arange(start, len(parts)), [sample.facts["in_text"]])
    assert all(word in text for i in near for word in parts[i])
    assert far.size and all(any(word not in text for word in parts[i]) for i in far)


def test_rule_scores_are_rulers():
    answers = [" 123", " Swift River", " 456"]
    assert rule_score("all", "it is 123 and swift river", answers) == pytest.approx(2 / 3)
    assert rule_score("part", "it is 123 and swift river", answers) == 1
    assert rule_score("all", "nothing", answers) == rule_score("part", "nothing", answers) == 0
    assert rule_score("all", "456, SWIFT RIVER, 123", answers) == 1


def test_words_of_training_are_not_those_of_tests():
    for kind, listed in words.vocabulary().items():
        assert len(set(listed)) == len(listed), kind
        train, test = (set(words.listed(kind, split)) for split in ("train", "test"))
        assert train | test == set(listed) and not train & test
        if not kind.startswith("noise"):
            assert min(len(train), len(test)) >= 25
            assert not any(a != b and b.startswith(a) for a in listed for b in listed)
    everything = [word for listed in words.vocabulary().values() for word in listed]
    assert len(set(everything)) == len(everything)
    noise = {w for kind in words.vocabulary() if kind.startswith("noise")
             for phrase in words.vocabulary()[kind] for w in phrase.split()}
    assert not noise & {w for kind, listed in words.vocabulary().items()
                        if not kind.startswith("noise") for w in listed}
    rng = np.random.default_rng(0)
    coined = [set(words.coined(rng, 20_000, split)) for split in ("train", "test")]
    assert not coined[0] & coined[1] and {len(word) for word in coined[0]} == {6}
    hay = [open_haystack(encoder_of(PICO), "noise", split) for split in ("train", "test")]
    sentences = [
        {h.tokens[a:b].tobytes() for a, b in zip(h.cuts, [*h.cuts[1:], None], strict=True)}
        for h in hay
    ]
    assert len(sentences[0]) > 4000 and not sentences[0] & sentences[1]


@settings(max_examples=20)
@given(some_seed, st.sampled_from([1, 30, 7000, 20_000]))
def test_keys_are_as_many_as_asked_for_and_distinct(seed, count):
    rng = np.random.default_rng(seed)
    keys = words.keys(rng, count, "test")
    assert len(set(keys)) == len(keys) == count
    assert {len(key.split()) for key in keys} == {words.key_words(count, "test")}
    assert all(words.split_of(word) == "test" for key in keys[:50] for word in key.split())
    alike = words.alike(rng, words.keys(rng, 1, "test")[0], min(count, 7000), "test")
    assert len(set(alike)) == len(alike) == min(count, 7000)


@settings(max_examples=20)
@given(some_seed, st.integers(0, 5000), st.sampled_from(["noise", "repeat", "prose"]))
def test_hay_is_of_the_size_asked_for_and_ends_with_a_sentence(prose, seed, count, name):
    hay = prose if name == "prose" else open_haystack(encoder_of(PICO), name)
    tokens, cuts = hay.draw(np.random.default_rng(seed), count)
    assert len(tokens) == count and cuts[-1] == count and cuts[0] >= 0
    assert (np.diff(cuts) > 0).all()
    for cut in cuts[:-1][:20]:
        before, after = PICO.decode(tokens[:cut]), PICO.decode(tokens[cut:])
        assert (not before or not before[-1].isspace()) and after[0] in " \n"


def test_a_text_shorter_than_the_hay_goes_round(prose):
    tokens, cuts = prose.draw(np.random.default_rng(0), 3 * len(prose.tokens))
    lap = len(prose.tokens)
    np.testing.assert_array_equal(tokens[:lap], tokens[lap:2 * lap])
    assert len(cuts) >= 3 * len(prose.cuts)


def test_a_million_tokens_are_made_at_once():
    for family in ("niah_multikey_1", "facts_3", "edits"):
        sample = make(family, PICO, 1_000_000, 0, depth=0.5)
        assert len(sample.prompt) == 999_969 and sample.depth == pytest.approx(0.5, abs=0.14)


def _backend(pre_tokenizer, decoder, model):
    backend = Backend(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) + ["▁"],
    )
    sentences = [" The code of amber falcon is 48213.\n", " Where is Mary? She went, it rained."]
    backend.train_from_iterator(sentences * 20, trainer)
    return Tokenizer(backend.to_str())


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHERS = {
    "llama3": lambda: _backend(
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]), decoders.ByteLevel(), models.BPE(),
    ),
    "gpt2": lambda: _backend(
        pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), models.BPE()
    ),
    "sentencepiece": lambda: _backend(
        pre_tokenizers.Metaspace(), decoders.Metaspace(), models.BPE(unk_token="<unk>")
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tokenizers_have_the_same_text(kind, tmp_path):
    tokenizer = OTHERS[kind]()
    (tmp_path / "story.txt").write_text(" It rained.\nMary went on. She sang and ran.\n" * 90)
    for haystack in ("noise", str(tmp_path / "story.txt")):
        for family in ("niah_multikey_1", "niah_multiquery", "kv", "edits", "facts_2"):
            sample = make(family, tokenizer, 3000, 4, haystack=haystack)
            text = text_of(sample, tokenizer)
            said = tokenizer.decode(np.concatenate([sample.prompt, sample.continuation]))
            assert said.startswith(text) and said[len(text)] == " "
            held = [tokenizer.decode(sample.prompt[a:b]).strip() for a, b in sample.support]
            assert all(statement in text for statement in held)
            if family == "niah_multikey_1":
                (key, value), = NEEDLE.findall(held[0])
                assert text.endswith(f"The code of {key} is") and said.endswith(f" {value}")
            # What a tokenizer makes of the whole end of the text is what the pieces gave.
            whole = tokenizer.encode(said)[-20:]
            assert np.array_equal(whole, np.r_[sample.prompt, sample.continuation][-20:])


def test_what_cannot_be_made_is_said(prose, tmp_path):
    for arguments, words_of_it in [
        (("nothing", PICO, 1000, 0), "no family"),
        (("niah_single_1", PICO, 20, 0), "33 tokens"),
        (("niah_multikey_1", PICO, 64, 0), "needs"),
        (("cwe", PICO, 300, 0), "fit"),
        (("edits", PICO, 200, 0), "room"),
    ]:
        with pytest.raises(UserError, match=words_of_it):
            make(*arguments)
    with pytest.raises(UserError, match="no parameter hops"):
        make("kv", PICO, 1000, 0, hops=3)
    with pytest.raises(UserError, match="between 0 and 1"):
        make("kv", PICO, 1000, 0, depth=1.5)
    sample = make("niah_single_1", PICO, 1000, 0)
    (tmp_path / "told.txt").write_text(f" It was{PICO.decode(sample.continuation)}." * 50)
    with pytest.raises(UserError, match="says the answer itself"):
        make("niah_single_1", PICO, 1000, 0, haystack=str(tmp_path / "told.txt"))
    assert set(FAMILIES) < set(NAMES)
