import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import Mixture, domains_of
from data.sampling import ALL_ROWS, Corpus, segments
from mctx.errors import UserError

BASE = 1_000_000  # token i of domain d is d · BASE + i
HISTORY = dict(near=8, far=4, groups=2, tail=3, reach=40, block=2)
WEIGHTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0.01, 5), min_size=1)


def corpus_of(domain: int, *sizes: int, tokenizer: str = "t") -> Corpus:
    stops = np.cumsum(sizes)
    packages = np.stack([stops - sizes, stops], axis=1)
    documents = np.concatenate([packages, np.arange(len(sizes))[:, None]], axis=1)
    tokens = np.arange(stops[-1], dtype=np.uint32) + domain * BASE
    return Corpus(tokens, documents, packages, {"tokenizer": tokenizer})


CORPORA = {"a": corpus_of(0, 300, 90), "b": corpus_of(1, 70, 60), "c": corpus_of(2, 500)}


def drawn(mixture: Mixture, kind: str, batch: int, seed: int, step: int, rows=ALL_ROWS):
    if kind == "histories":
        found = mixture.histories(**HISTORY, batch=batch, seed=seed, step=step, rows=rows)
        return np.concatenate([found[0], found[1]], axis=1)
    return getattr(mixture, kind)(17, batch, seed, step, rows)


@pytest.mark.parametrize("kind", ["windows", "segments", "histories"])
@settings(max_examples=30)
@given(WEIGHTS, st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 2**31), st.booleans(),
       st.data())
def test_rows_do_not_depend_on_who_asks(kind, weights, batch, seed, step, turns, data):
    mixture = Mixture.of(CORPORA, weights)
    mixture = mixture.even() if turns else mixture
    whole = drawn(mixture, kind, batch, seed, step)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, batch)] * 2)))
    part = drawn(mixture, kind, batch, seed, step, slice(first, last))
    np.testing.assert_array_equal(part, whole[first:last])
    assert whole.dtype == np.int32 and len(whole) == batch
    names = [mixture.names[i] for i in mixture.domains(batch, seed, step)]
    assert (whole[:, 0] // BASE).tolist() == ["abc".index(name) for name in names]


@settings(max_examples=30)
@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 2**31), st.integers(2, 40))
def test_the_domain_of_a_row_is_a_function_of_seed_step_and_row(weights, seed, step, batch):
    mixture = Mixture.of(CORPORA, weights)
    chosen = mixture.domains(batch, seed, step)
    np.testing.assert_array_equal(mixture.domains(batch // 2, seed, step), chosen[: batch // 2])
    scaled = Mixture.of(CORPORA, {name: 2 * weight for name, weight in weights.items()})
    np.testing.assert_array_equal(scaled.domains(batch, seed, step), chosen)


def test_a_row_is_that_of_its_domain_alone():
    mixture = Mixture.of(CORPORA, {"a": 1, "c": 3})
    whole = mixture.segments(20, 50, 3, 4)
    alone = [segments(corpus, 20, 50, 3, 4) for corpus in mixture.corpora]
    for row, domain in enumerate(mixture.domains(50, 3, 4)):
        np.testing.assert_array_equal(whole[row], alone[domain][row])


def test_proportions_converge_to_the_weights():
    mixture = Mixture.of(CORPORA, {"a": 0.47, "b": 0.47, "c": 0.06})
    steps = np.concatenate([mixture.domains(64, 5, step) for step in range(500)])
    shares = np.bincount(steps, minlength=3) / steps.size
    np.testing.assert_allclose(shares, [0.47, 0.47, 0.06], atol=4 * (0.25 / steps.size) ** 0.5)
    batches = {mixture.domains(64, seed, step).tobytes() for seed in (0, 1) for step in range(20)}
    assert len(batches) == 40


def test_held_out_rows_take_turns():
    even = Mixture.of(CORPORA, {"a": 9, "c": 1}).even()
    assert (even.segments(10, 5, 0, 0)[:, 0] // BASE).tolist() == [0, 2, 0, 2, 0]


def test_a_domain_that_does_not_do_is_named_even_if_no_row_is_drawn_from_it():
    mixture = Mixture.of(CORPORA, {"a": 1, "b": 1e-9})
    with pytest.raises(UserError, match="domain 'b' .* weight 0: No package has 80 tokens"):
        mixture.segments(80, 4, 0, 0, slice(0, 0))
    assert Mixture.of(CORPORA, {"a": 1, "b": 0}).segments(80, 4, 0, 0).shape == (4, 80)


@pytest.mark.parametrize("weights, message", [
    ({"a": 1, "d": 1}, "no domain 'd' among a, b, c"), ({"a": 0}, "above"), ({"a": -1}, "below"),
    ({}, "above"),
])
def test_weights_that_mean_nothing(weights, message):
    with pytest.raises(UserError, match=message):
        Mixture.of(CORPORA, weights)


def test_domains_of_different_tokenizers_do_not_mix():
    with pytest.raises(UserError, match="tokenizers"):
        Mixture.of({"a": CORPORA["a"], "x": corpus_of(3, 50, tokenizer="u")}, {"a": 1, "x": 1})


def test_domains_are_folders(tmp_path):
    with pytest.raises(UserError, match="no corpus"):
        domains_of(tmp_path)
    for name in ("code/train", "code/valid", "books/train"):
        (tmp_path / name).mkdir(parents=True)
    assert domains_of(tmp_path) == {"books": tmp_path / "books", "code": tmp_path / "code"}
    assert domains_of(tmp_path / "code") == {"code": tmp_path / "code"}
