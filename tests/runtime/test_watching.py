"""What a refocus is said to have gained and spent."""

import dataclasses

import numpy as np

from tests.runtime import small

TOKENS = small.text(240, seed=5)


def streamed(**settings):
    """NLL of a text, and the telemetry of its refocuses."""
    reports = []
    config = dataclasses.replace(small.CONFIG, **settings)
    session = small.session(config, on_refocus=lambda _, report: reports.append(report))
    return session.predict(TOKENS), reports


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


def test_operations_are_those_of_what_was_done():
    _, reports = streamed()
    read = [report["refocus/flops/read"] for report in reports]
    decide = [report["refocus/flops/decide"] for report in reports]
    assert read[0] == 0 and len(set(read[1:])) == 1, "every interval reads as many tokens"
    rounds = np.array(decide) / min(decide)
    np.testing.assert_array_equal(rounds, rounds.round())
    assert max(rounds) <= small.CONFIG.rounds
    assert all(report["refocus/flops/ingest"] > 0 for report in reports[1:])
