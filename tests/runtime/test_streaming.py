"""Law 5: a stream compiles nothing anew, however long it gets."""

import dataclasses

import jax
import numpy as np
import pytest

from mctx.opened import fingerprint
from mctx.runtime import finding
from tests import tiny
from tests.runtime import small, test_finding
from tests.runtime.small import (
    BLOCK,
    CONFIG,
    MODEL,
    TWO,
    WINDOW,
    Compilations,
    compiled,
    session,
    text,
)

REFOCUSES = 1000
BLOCK_BYTES = 2 * 4 * MODEL.base.n_layers * BLOCK * MODEL.base.n_kv_heads * MODEL.base.head_dim
# One round a refocus: the programs are the same, the test is shorter.
STREAMING = dataclasses.replace(CONFIG, rounds=1, cache_bytes=8 * BLOCK_BYTES)


def test_a_thousand_refocuses_compile_nothing_anew():
    """Three levels are born above the first and the cache overflows, all after the warm-up."""
    tokens = text(REFOCUSES * BLOCK, seed=9)
    warm = session(STREAMING)
    warm.predict(tokens[: MODEL.gist.span(4) + 3 * BLOCK])
    warm.cache.drop()  # so that a window is read again
    warm.assembly.forget()
    warm.refocus()
    counted, births = Compilations(), set()

    def watch(made, _):
        births.update(level for level in range(1, 5) if made.tree.count(level))

    made = session(STREAMING, on_refocus=watch)
    assert not births
    nll = made.predict(tokens)
    assert counted.count == 0
    assert made.refocuses == REFOCUSES + 1
    assert births == {1, 2, 3, 4}
    assert made.cache.windows_read > 0
    assert np.all(np.isfinite(nll[1:]))


ON_DEVICE = {"cache_bytes": 8 * BLOCK_BYTES, "device_bytes": 12 * BLOCK_BYTES}


@pytest.mark.parametrize(
    "of, config",
    [
        (small, dataclasses.replace(TWO, decide="ahead", tail="keep", **ON_DEVICE)),
        (test_finding, dataclasses.replace(CONFIG, **ON_DEVICE)),
    ],
)
def test_no_program_is_compiled_twice_for_the_same_shapes(of, config, monkeypatch):
    """From nothing, until gists of several levels are shown and every store has grown."""
    monkeypatch.setattr(finding, "PIECE", test_finding.PIECE)
    reader = small.Reader(MODEL, small.opened().params)  # whose programs nobody has used
    tokens, levels = text(MODEL.gist.span(3) + 4 * WINDOW, seed=9), set()

    def watch(made, _):
        shown = np.asarray(made.shown.shown)
        levels.update(np.asarray(made.shown.level)[shown].tolist())

    made = small.Session(of.opened(), small.place(), config, reader=reader, on_refocus=watch)
    with compiled() as counts:
        made.predict(tokens[: 2 * BLOCK])
        made.predict(tokens[:3])
        made.predict(tokens[3:4])
        made.generate(tokens=3 * BLOCK)
        made.predict(tokens)
        for seen in BLOCK - 1, 2 * BLOCK - 1:
            stream = made.stream(tokens=4 * BLOCK)
            for _ in range(seen):
                next(stream)
            stream.close()
        made.ingest(tokens[: 5 * WINDOW])
        made.generate(tokens=9 * BLOCK)
    assert {0, 1, 2} <= levels and made.cache.windows_read > 0
    assert counts.total() > 20
    assert not [one for one, count in counts.items() if count > 1]


def test_one_program_makes_the_rows_of_gists_whatever_their_slots():
    gist = dataclasses.replace(MODEL.gist, slots=(2, 4, 2, 1))
    model = dataclasses.replace(MODEL, gist=gist)
    drawn = jax.device_put(tiny.drawn(model, "gistnet"), jax.devices()[0])
    params = small.opened().params | {"gistnet": drawn}
    opened = small.opened()._replace(model=model, params=params, fingerprint=fingerprint(params))
    shown = set()

    def watch(made, _):
        live = np.asarray(made.shown.shown)
        shown.update(np.asarray(made.shown.level)[live].tolist())

    made = small.Session(opened, small.place(), CONFIG, on_refocus=watch)
    with compiled() as counts:
        made.predict(text(gist.span(3) + 4 * WINDOW, seed=9))
    assert {1, 2} <= shown  # of two and of four slots
    for name in "rows_of_gists", "write_rows":
        assert len([one for one in counts if f"jit({name})" in one]) == 1
    assert not [one for one, count in counts.items() if count > 1]


def test_compilations_are_counted():
    counted = Compilations()
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert counted.count > 0
