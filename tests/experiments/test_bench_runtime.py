"""The benches of the runtime: rows read again or kept, what is told of what fails, and curves."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.bench import __main__ as bench
from experiments.bench import positions, stock
from experiments.suites.base import tail_of_base
from mctx.errors import UserError
from tests import tiny
from tests.experiments import tiny_checkpoint

BLOCK, WINDOW = tiny.GIST.block, tiny.MODEL.window
TAIL = 12


@pytest.fixture(scope="module")
def found():
    """Segments whose history is one ingest window, and three of its blocks by chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "SCORED", TAIL - 1)
        patch.setattr(positions, "COUNTS", (3,))
        tokens = np.asarray(tiny.tokens(2, WINDOW + TAIL))
        drawn = np.random.default_rng(0).random((2, WINDOW // BLOCK))
        return tokens, positions.measure(tiny.MODEL, tiny.params(), tokens, drawn, 3)


def test_one_window_that_is_all_shown_reads_as_the_base_whatever_its_rows(found):
    tokens, told = found
    whole = np.asarray(tail_of_base(tiny.MODEL, TAIL, tiny.params()["base"], tokens)).mean(axis=1)
    full = told["full", ("recomputed", "global")]
    np.testing.assert_allclose(full, whole, atol=1e-5)
    for method in positions.METHODS:
        np.testing.assert_allclose(told["all", method], full, atol=1e-5)


def test_what_is_not_shown_is_not_read(found):
    tokens, told = found
    base = tiny.params()["base"]
    alone = np.asarray(tail_of_base(tiny.MODEL, TAIL, base, tokens[:, WINDOW:])).mean(axis=1)
    np.testing.assert_allclose(told["none", ("recomputed", "contiguous")], alone, atol=1e-5)


def test_methods_differ_where_a_part_is_shown(found):
    _, told = found
    values = np.array([told["random 3", method] for method in positions.METHODS])
    assert len(np.unique(values.round(6), axis=0)) == len(positions.METHODS)


def test_every_source_has_a_row_a_choice_and_method_with_intervals(found):
    _, told = found
    many = {key: np.tile(values, 3) for key, values in told.items()}
    rows = positions.rows(many, np.array(["a"] * 6), np.array(list("xyzxyz")), 0)
    assert len(rows) == 3 * len(positions.METHODS)
    assert all(row["delta_low"] <= row["delta_nll"] <= row["delta_high"] for row in rows)
    assert all(row["delta_nll"] == 0 for row in rows if row["what"] == "cached, contiguous")


def test_what_cannot_be_measured_beside_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such package >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    told = stock.measured(tiny.MODEL, [(1, 64)], 2, 2)
    assert [one.kind for one in told] == list(stock.KINDS)
    assert {one.error for one in told} == {"no such package"}


def test_a_bench_out_of_time_begins_no_part(tmp_path):
    written = tiny_checkpoint.write(tmp_path, ("base", "gistnet", "lensnet", "mof"))
    where = f"--checkpoint={written}", f"--json={tmp_path / 'x.json'}"
    with pytest.raises(UserError, match="--seconds"):
        bench.main(["runtime", "--smoke", "--seconds=0", *where])


def test_a_bench_of_no_samples_is_refused():
    with pytest.raises(UserError, match="--samples must be positive"):
        bench.main(["positions", "--smoke", "--samples=-1"])


def test_a_result_with_panels_becomes_curves(tmp_path):
    rows = [
        dict(what=what, history=n, value=v * n, low=n / 2, high=2 * v * n, unit="ms", held=n, n=3)
        for what, v in (("one", 1), ("two", 3)) for n in (1024, 4096, 2**20)
    ]
    about = dict(name="growth", command="c", seed=0, commit="x", machine={}, interval="quartiles")
    panels = dict(panels={"value": "ms", "held": "MiB"}, across="history")
    path = tmp_path / "growth.json"
    path.write_text(json.dumps({**about, **panels, "rows": rows}))
    report.main([str(path)])
    with Image.open(tmp_path / "report" / "growth.png") as picture:
        assert picture.width > 1000
