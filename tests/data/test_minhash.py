import numpy as np
import pytest

from data import minhash
from tests.data.conftest import code, edited


def shingle_set(text: str) -> set:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").replace(":", " ").split()
    words = [word for word in words if word != "="]
    return {tuple(words[i : i + minhash.SHINGLE]) for i in range(len(words) - minhash.SHINGLE + 1)}


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.3, 1.0])
def test_signatures_estimate_the_jaccard_similarity(share):
    estimates, exact = [], []
    for seed in range(20):
        text = code(seed)
        other = edited(text, share, seed)
        a, b = shingle_set(text), shingle_set(other)
        exact.append(len(a & b) / len(a | b))
        estimates.append(minhash.similarity(minhash.signature(text), minhash.signature(other)))
    assert np.mean(estimates) == pytest.approx(np.mean(exact), abs=0.04)


def test_layout_and_licence_do_not_matter_but_order_does():
    text = "alpha = beta(gamma, delta)\nreturn epsilon + zeta\n"
    same = "# Copyright: us\n\nalpha = beta(\n    gamma,\n    delta,\n)\nreturn epsilon+zeta\n"
    other = "return epsilon + zeta\nalpha = beta(gamma, delta)\n"
    assert minhash.similarity(minhash.signature(text), minhash.signature(same)) == 1
    assert minhash.similarity(minhash.signature(text), minhash.signature(other)) < 1


@pytest.mark.parametrize("text", ["", "# only\n# a licence\n", "one", "é" * 9, "()"])
def test_the_shortest_texts_have_signatures(text):
    assert minhash.signature(text).shape == (minhash.PERMUTATIONS,)


def test_signatures_are_the_same_everywhere():
    # Sketches ship: these numbers may never change.
    got = minhash.signature("one two three four five six seven")[:3]
    np.testing.assert_array_equal(got, [85121447, 1108007265, 1806540854])


def test_copies_point_to_the_first_and_the_others_stay():
    texts = [code(1), code(2), edited(code(1), 0.03), code(3), code(2), edited(code(2), 0.6)]
    found = minhash.originals(np.stack([minhash.signature(text) for text in texts]))
    assert found.tolist() == [-1, -1, 0, -1, 1, -1]


def test_what_copies_a_held_out_copy_is_one():
    """The second copies the first, the third the second, and is not alike to the first."""
    words = [f"word{i}" for i in range(1000)]
    other = [f"other{i}" for i in range(1000)]
    texts = [" ".join(part) for part in (
        words, other[:150] + words[150:], other[:150] + words[150:850] + other[850:],
    )]  # fmt: skip
    signatures = np.stack([minhash.signature(text) for text in texts])
    assert minhash.originals(signatures).tolist() == [-1, 0, -1]
    staying = np.array([True, True, False])
    assert minhash.originals(signatures, staying).tolist() == [-1, 0, 1]


def test_no_pair_of_survivors_is_alike():
    texts = [edited(code(seed), share, i) for seed in range(8)
             for i, share in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, 0.4))]
    signatures = np.stack([minhash.signature(text) for text in texts])
    kept = signatures[minhash.originals(signatures) < 0]
    alike = minhash.similarity(kept[:, None], kept[None]) >= minhash.SIMILAR
    assert 8 <= len(kept) < len(texts) and not (alike & ~np.eye(len(kept), dtype=bool)).any()


def test_a_sketch_of_many_texts_knows_them_and_their_near_duplicates():
    rng = np.random.default_rng(0)
    others = rng.integers(2**32, size=(80_000, minhash.PERMUTATIONS), dtype=np.uint32)
    texts = [code(seed) for seed in range(100)]
    mine = np.stack([minhash.signature(text) for text in texts])
    sketch = minhash.sketch(np.concatenate([mine, others]))
    assert sketch.nbytes == minhash.SKETCH_BYTES <= 400_000
    assert minhash.in_sketch(sketch, mine).all() and minhash.in_sketch(sketch, others).all()

    near = np.stack([minhash.signature(edited(text, 0.05, i)) for i, text in enumerate(texts)])
    assert 0.7 < minhash.similarity(mine, near).mean() < 0.9
    assert minhash.in_sketch(sketch, near).mean() >= 0.95

    unseen = rng.integers(2**32, size=(2_000, minhash.PERMUTATIONS), dtype=np.uint32)
    assert minhash.in_sketch(sketch, unseen).mean() < 0.06


def test_the_sketch_of_two_corpora_is_the_or_of_theirs_and_old_sizes_can_be_asked(monkeypatch):
    a, b = (np.stack([minhash.signature(code(s)) for s in some]) for some in ((0, 1), (2, 3)))
    both = np.concatenate([a, b])
    np.testing.assert_array_equal(minhash.sketch(a) | minhash.sketch(b), minhash.sketch(both))
    monkeypatch.setattr(minhash, "SKETCH_BYTES", 1_000)
    small = minhash.sketch(a)
    monkeypatch.undo()
    assert minhash.in_sketch(small, a).all() and not minhash.in_sketch(small, b).any()
