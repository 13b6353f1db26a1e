import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sampling import Corpus, segments, windows
from mctx.errors import UserError


def corpus_of(sizes) -> Corpus:
    """A corpus whose token i is i, with packages of these sizes."""
    stops = np.cumsum(sizes)
    packages = np.stack([stops - sizes, stops], axis=1)
    documents = np.concatenate([packages, np.arange(len(sizes))[:, None]], axis=1)
    return Corpus(np.arange(stops[-1], dtype=np.uint32), documents, packages, {})


sizes = st.lists(st.integers(1, 300), min_size=1, max_size=8)


@pytest.mark.parametrize("draw", [windows, segments])
@settings(max_examples=50)
@given(sizes, st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 2**31), st.data())
def test_rows_do_not_depend_on_who_asks(draw, sizes, batch, seed, step, data):
    corpus = corpus_of(sizes)
    length = data.draw(st.integers(1, max(sizes)))
    whole = draw(corpus, length, batch, seed, step)
    assert whole.dtype == np.int32 and whole.shape == (batch, length)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, batch)] * 2)))
    part = draw(corpus, length, batch, seed, step, rows=slice(first, last))
    np.testing.assert_array_equal(part, whole[first:last])
    np.testing.assert_array_equal(np.diff(whole, axis=1), 1)  # contiguous


@settings(max_examples=50)
@given(sizes, st.integers(0, 1000), st.data())
def test_segments_stay_within_a_package(sizes, step, data):
    corpus = corpus_of(sizes)
    length = data.draw(st.integers(1, max(sizes)))
    batch = segments(corpus, length, 32, 0, step)
    owner = np.searchsorted(corpus.packages[:, 1], batch, side="right")
    assert (owner == owner[:, :1]).all()


@pytest.mark.parametrize("draw, places", [
    (windows, [*range(0, 46)]),
    (segments, [*range(0, 6), *range(14, 35)]),  # packages of 10, 4, 25 and 11 tokens, length 5
])
def test_every_place_is_as_likely(draw, places):
    corpus = corpus_of([10, 4, 25, 11])
    if draw is segments:
        places = [*places, *range(39, 46)]
    counts = np.bincount(draw(corpus, 5, 40_000, 7, 3)[:, 0], minlength=50)
    assert np.flatnonzero(counts).tolist() == places
    expected = 40_000 / len(places)
    assert np.abs(counts[places] - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize("draw", [windows, segments])
def test_steps_and_seeds_differ(draw):
    corpus = corpus_of([100_000])
    batches = {draw(corpus, 4, 8, seed, step).tobytes() for seed in range(5) for step in range(5)}
    assert len(batches) == 25


def test_too_short_a_corpus_is_an_error():
    corpus = corpus_of([10, 20])
    assert windows(corpus, 30, 1, 0, 0).shape == (1, 30)
    with pytest.raises(UserError, match="31"):
        windows(corpus, 31, 1, 0, 0)
    with pytest.raises(UserError, match="21"):
        segments(corpus, 21, 1, 0, 0)


def test_load_reads_the_borders_of_packages_from_the_documents(tmp_path):
    with pytest.raises(UserError, match="no corpus"):
        Corpus.load(tmp_path)
    np.save(tmp_path / "tokens.npy", np.arange(2_000_000, dtype=np.uint16))
    np.save(tmp_path / "documents.npy", np.array([[0, 3, 0], [3, 9, 0], [9, 2_000_000, 1]]))
    (tmp_path / "manifest.json").write_text(json.dumps({"tokens": 2_000_000}))
    corpus = Corpus.load(tmp_path)
    assert corpus.packages.tolist() == [[0, 9], [9, 2_000_000]]
    assert corpus.manifest["tokens"] == 2_000_000

    def milliseconds(step: int) -> float:
        start = time.perf_counter()
        segments(corpus, 4_096, 64, 0, step)
        return 1e3 * (time.perf_counter() - start)

    assert min(map(milliseconds, range(20))) < 5
