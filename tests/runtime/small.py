"""Sessions over a tiny wrapped model with random parameters; the text is digits of chance."""

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections import Counter

import jax
import numpy as np

from mctx.models.wrapped import Wrapped
from mctx.opened import Opened, fingerprint
from mctx.runtime import Session, SessionConfig
from mctx.tree.ingest import Reader
from tests import tiny

MODEL: Wrapped = dataclasses.replace(
    tiny.MODEL, gist=dataclasses.replace(tiny.GIST, fanouts=(4, 4, 4, 4), trained=4)
)
BLOCK, WINDOW, VOCABULARY = 4, 16, tiny.BASE.vocab_size
# The policy that promises most: two ways to one layout read alike.
CONFIG = SessionConfig(
    budget=64, sink=1, recent=2, capacity=40, rounds=2, commit_every=1000, tail="window"
)
# The same share of the budget for a head, so that one allocator serves them all.
TWO = dataclasses.replace(CONFIG, heads=2, top=2, budget=2 * CONFIG.budget)
ONE_OF_TWO = dataclasses.replace(CONFIG, heads=2)

_numbers = itertools.count()


class Letters:
    """A tokenizer of one letter a token."""

    eot_id = 0

    def encode(self, text):
        return np.array([ord(c) - ord("A") for c in text], np.int32)

    def decode(self, ids):
        return "".join(chr(ord("A") + i) for i in ids)


@functools.cache
def opened() -> Opened:
    parts = ("base", "gistnet", "lensnet", "mof")
    # On a device by name, as those of a checkpoint are: programs know these from others.
    drawn = {part: tiny.drawn(MODEL, part) for part in parts}
    params = jax.device_put(drawn, jax.devices()[0])
    return Opened(MODEL, params, Letters(), fingerprint(params), {})


@functools.cache
def reader() -> Reader:
    return Reader(MODEL, opened().params)


def place() -> str:
    """Where no tree is yet."""
    return f"memory://small-{next(_numbers)}"


def session(config: SessionConfig = CONFIG, tree=None, **how) -> Session:
    return Session(opened(), tree or place(), config, reader=reader(), **how)


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, length).astype(np.int32)


def worths(seed: int):
    """Every block's worth by chance, the same whenever asked."""

    def table(session):
        return np.random.default_rng(seed).exponential(size=4096)[: session.blocks]

    return table


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, duration, **_):
        self.count += event.endswith("backend_compile_duration")


@contextlib.contextmanager
def compiled():
    """Counts programs that JAX compiles meanwhile, none of which it knows yet, by the name of their
    function and the shapes of their arguments; but for those of which these do not say all."""
    static = "jit(_ascend)", "jit(broadcast_in_dim)"  # a level, a shape
    logger = logging.getLogger("jax._src.interpreters.pxla")
    heard, level, handler = Counter(), logger.level, logging.Handler()

    def hear(record):
        message = record.getMessage()
        if message.startswith("Compiling ") and not any(name in message for name in static):
            heard[message.partition(" Argument mapping")[0]] += 1

    handler.emit = hear
    jax.clear_caches()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
