"""The table says what the numbers say: differences, recovered, untrained rows, verdicts."""

import numpy as np
import pytest

from experiments import comparison, ship
from experiments.quickstart import SHIPPED, untrained_rows, verdicts
from experiments.statistics import interval, ratio
from mctx.models.base import token_nll
from mctx.models.wrapped import Wrapped, read
from mctx.opened import open_checkpoint

PROTOCOL = comparison.Protocol()


def segments(n=40, **shift):
    """Fake NLLs that share a segment's difficulty, so that paired differences are exact."""
    base = np.random.default_rng(0).normal(2.0, 0.5, n)
    shifts = dict.fromkeys(comparison.METHODS, 0.0) | shift
    return [{name: float(x + s) for name, s in shifts.items()} for x in base]


def test_rows_are_the_promised_ones_in_order():
    rows = comparison.table(segments(full=-0.2), segments(full=-0.2), PROTOCOL, {})
    assert [row["what"] for row in rows] == list(comparison.METHODS)


def test_differences_are_paired_and_recovered_is_a_ratio_of_means():
    far = segments(lens=-0.1, full=-0.2)
    near = segments(lens=-0.05, full=-0.2, hindsight=-0.3)
    by = {row["what"]: row for row in comparison.table(far, near, PROTOCOL, {})}
    assert by["lens"]["delta_nll"] == pytest.approx(-0.1)
    assert by["lens"]["delta_high"] == pytest.approx(-0.1)  # no spread is left in a paired one
    assert by["lens"]["recovered"] == pytest.approx(0.25)
    assert by["hindsight"]["recovered"] == pytest.approx(1.5)
    assert by["full"]["recovered"] == pytest.approx(1.0)


def test_recovered_is_not_told_where_full_attention_gains_nothing():
    rows = comparison.table(segments(), segments(full=0.01), PROTOCOL, {})
    assert not any("recovered" in row for row in rows)


def test_verdicts_admit_what_does_not_beat_recency():
    far = segments(**{"lens": 0.1, "two heads": -0.1})
    notes = verdicts(comparison.table(far, segments(full=-0.2), PROTOCOL, {}), toy_run=False)
    assert notes[0].startswith("lens is worse than sinks + recent")
    assert notes[1].startswith("two heads beats sinks + recent")
    assert "not told apart" in notes[2]


def test_a_part_no_better_than_its_control_marks_its_rows():
    judged = {"measure": "nll", "value": 2.0, "control": 1.9, "better": False}
    config = {"trained": {"mof": judged, "lens": judged | {"better": True}}}
    assert set(ship.untrained(config)) == {"mof"}
    opened = open_checkpoint(SHIPPED, ("base",))._replace(config=config)
    assert set(untrained_rows(opened)) == {"two heads", "heads+staging"}


def test_intervals_cover_the_mean_and_shrink_with_data():
    rng = np.random.default_rng(1)
    few, many = (interval(rng.normal(size=n)) for n in (20, 2000))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 4
    assert ratio(np.ones(5), np.full(5, 2.0)).value == 0.5


@pytest.mark.parametrize("groups", [3, 5, 8, 20])
def test_an_interval_of_few_groups_holds_the_mean_as_often_as_it_says(groups):
    drawn = np.random.default_rng(0).normal(size=(400, groups))
    held = [found.low <= 0 <= found.high for found in map(interval, drawn)]
    assert 0.90 < np.mean(held) < 0.99


def test_the_shipped_base_still_says_what_it_said():
    """A known NLL: any change to weights, tokenizer, loading or arithmetic moves it."""
    opened = open_checkpoint(SHIPPED, ("base",))
    assert isinstance(opened.model, Wrapped)
    text = "import numpy as np\n\n\ndef mean(values):\n    return np.sum(values) / len(values)\n"
    tokens = np.concatenate([opened.model.base.prefix, opened.tokenizer.encode(text)])[None]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    hidden = read(opened.model, opened.params, tokens.astype(np.int32), positions).hidden
    nll = token_nll(opened.params["base"], hidden[:, :-1], tokens[:, 1:]).mean()
    assert float(nll) == pytest.approx(KNOWN_NLL, abs=2e-3)


KNOWN_NLL = 2.1924
