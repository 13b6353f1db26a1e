"""Held-out numbers by domain: rows take turns, and every piece is of one domain."""

import numpy as np
import pytest

from mctx.training.sources import per_domain, scored


def test_numbers_are_told_of_all_and_of_each_domain():
    losses = np.array([1.0, 10.0, 3.0, 30.0, 5.0])
    found = per_domain(("code", "books"), lambda rows: {"nll": float(losses[rows].mean())})
    assert found == pytest.approx({"nll": 9.8, "nll/code": 3, "nll/books": 20})
    assert per_domain(("code",), lambda rows: {"nll": float(losses[rows].mean())}) == {"nll": 9.8}


@pytest.mark.parametrize("domains", [("a",), ("a", "b"), ("a", "b", "c")])
def test_pieces_are_of_one_domain_and_weigh_by_their_rows(domains):
    values, seen = np.arange(20.0) ** 2, []

    def score(rows):
        assert len(set(rows % len(domains))) == 1 and len(rows) <= 4
        seen.extend(rows)
        return {"nll": values[rows].mean()}

    found = scored(domains, 20, score, size=4)
    assert sorted(seen) == list(range(20)) and found["nll"] == pytest.approx(values.mean())
    if len(domains) > 1:
        for i, name in enumerate(domains):
            assert found[f"nll/{name}"] == pytest.approx(values[i :: len(domains)].mean())


@pytest.mark.parametrize("domains", [("a",), ("a", "b")])
def test_a_ratio_of_means_is_of_all_rows_however_they_are_cut(domains):
    rng = np.random.default_rng(0)
    got, most = rng.normal(size=20), rng.exponential(size=20)
    most[:4] = -1.0  # a piece of which alone there would be no ratio

    def score(rows):
        return {"captured": (got[rows], most[rows])}

    found = scored(domains, 20, score, size=4)
    assert found["captured"] == pytest.approx(got.sum() / most.sum())
    if len(domains) > 1:
        assert found["captured/b"] == pytest.approx(got[1::2].sum() / most[1::2].sum())
    assert np.isnan(scored(("a",), 4, score)["captured"])
