"""What a refocus is said to have gained and spent."""

import dataclasses
import time

import numpy as np
import pytest

from mctx.runtime import deciding, reading
from tests.runtime import small

TOKENS = small.text(240, seed=5)


def streamed(tokens=TOKENS, **settings):
    """NLL of a text, and the telemetry of its refocuses."""
    reports = []
    config = dataclasses.replace(small.CONFIG, **settings)
    session = small.session(config, on_refocus=lambda _, report: reports.append(report))
    return session.predict(tokens), reports


def gains(reports):
    return [report["refocus/delta_nll"] for report in reports if "refocus/delta_nll" in report]


def test_a_probe_changes_nothing_that_is_read():
    plain, probed = streamed(), streamed(probe_every=1)
    np.testing.assert_array_equal(plain[0], probed[0])
    assert not gains(plain[1]) and len(gains(probed[1])) > 30


def test_a_refocus_gains_nothing_while_all_is_shown_and_of_one_window():
    found = gains(streamed(probe_every=1)[1])
    inside = small.WINDOW // small.BLOCK
    np.testing.assert_allclose(found[:inside], 0, atol=1e-5)
    assert np.abs(found[inside:]).max() > 1e-3


def test_probes_come_as_often_as_asked():
    every = len(gains(streamed(probe_every=1)[1]))
    assert abs(len(gains(streamed(probe_every=4)[1])) - every / 4) <= 1


def test_a_gain_that_nobody_is_told_of_is_not_measured(monkeypatch):
    asked, plain, half = [], reading.peek, len(TOKENS) // 2

    def peek(*arguments):
        asked.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(reading, "peek", peek)
    made, reports = small.session(dataclasses.replace(small.CONFIG, probe_every=1)), []
    made.predict(TOKENS[:half])
    assert not asked
    made.on_refocus = lambda _, report: reports.append(report)
    made.predict(TOKENS[half:])
    wanted = gains(streamed(probe_every=1)[1])
    np.testing.assert_array_equal(gains(reports), wanted[-len(reports) :])


@pytest.mark.parametrize("decide", ["now", "ahead"])
def test_time_is_told_by_whether_a_decision_was_due(decide, monkeypatch):
    plain, slow = deciding._asked, 0.05

    def asked(*arguments, **more):
        time.sleep(slow)
        return plain(*arguments, **more)

    monkeypatch.setattr(deciding, "_asked", asked)
    reports = streamed(TOKENS[:60], decide=decide, rounds=1)[1]
    assert all(one["refocus/ms_ahead"] >= 1e3 * slow for one in reports[1:])
    first = reports[0]  # of a session that was just begun: nothing of it was made before
    assert first["refocus/ms_ahead"] == 0 and first["refocus/ms_due"] >= 1e3 * slow
    assert np.median([one["refocus/ms_due"] for one in reports[1:]]) < 1e3 * slow


def test_operations_are_those_of_what_was_done():
    _, reports = streamed()
    read = [report["refocus/flops/read"] for report in reports]
    decide = [report["refocus/flops/decide"] for report in reports]
    assert read[0] == 0 and len(set(read[1:])) == 1, "every interval reads as many tokens"
    rounds = np.array(decide) / min(decide)
    np.testing.assert_array_equal(rounds, rounds.round())
    assert max(rounds) <= small.CONFIG.rounds
    assert all(report["refocus/flops/ingest"] > 0 for report in reports[1:])
