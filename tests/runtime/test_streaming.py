"""Law 5: a stream compiles nothing anew, however long it gets."""

import dataclasses

import jax
import numpy as np

from tests.runtime.small import BLOCK, CONFIG, MODEL, Compilations, session, text

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


def test_compilations_are_counted():
    counted = Compilations()
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert counted.count > 0
