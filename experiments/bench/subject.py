"""What `bench runtime` measures: a model, histories made for it, and full attention beside it."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments import train
from experiments.aot import known_parts
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped, init_part
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionBatch, SessionConfig, reading, rows
from mctx.runtime.lanes import lanes_for
from mctx.runtime.sampling import Sampling
from mctx.training.sources import wrapped_from
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.store import Tree

COMMIT = 2**20  # tokens of a made history, between two commits


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
      long, short: tokens of the two histories that are compared. full: of the history that full
        attention reads. ingested: tokens that are ingested at once.
      budget: entries of the working context; tokens: generated in one timing; repetitions: of it.
      batches: numbers of sessions.
    """

    long: int
    short: int
    full: int
    ingested: int
    budget: int
    tokens: int
    repetitions: int
    batches: tuple[int, ...]


class Numbers:
    """In place of a tokenizer: ids are text already, and none of them ends it."""

    eot_id = -1

    def encode(self, text: Sequence[int]) -> np.ndarray:
        return np.asarray(text, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return "." * len(ids)


class Subject:
    """A model whose sessions are timed; its programs are compiled once for all of them."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes):
        self.opened = random_weights(args.config) if args.config else open_checkpoint(
            args.checkpoint, dtype=args.dtype
        )
        self.opened = self.opened._replace(tokenizer=Numbers())
        self.model, self.sizes, self.seed = self.opened.model, sizes, args.seed
        self.reader = Reader(self.model, self.opened.params)
        self._names = itertools.count()

    def config(self, **changes) -> SessionConfig:
        """A session's, with the budget of these sizes: tokens in focus, and room for as many silent
        nodes as cover the longest history twice."""
        gist, budget = self.model.gist, self.sizes.budget
        coarsest = self.sizes.long // gist.span(gist.levels)
        fixed = dict(budget=budget, recent=max(1, budget // (4 * gist.block)), show=(True, False))
        room = dict(capacity=max(512, 1 << (2 * coarsest).bit_length()), commit_every=64)
        return SessionConfig(**fixed | room | changes)

    def words(self, length: int, which: int = 0) -> np.ndarray:
        """Tokens drawn by chance: [length]."""
        rng = np.random.default_rng([self.seed, which])
        return rng.integers(1, self.model.base.vocab_size, length, np.int32)

    def empty(self) -> Tree:
        spec = tree_spec(self.model, self.opened.fingerprint)
        return Tree.create(f"memory://runtime-{id(self)}-{next(self._names)}", spec)

    def history(self, length: int) -> Tree:
        """A tree of so many tokens that nobody read: gists are drawn, as large as a block's own."""
        tree, rng = self.empty(), np.random.default_rng(self.seed)
        spec, block = tree.spec, self.model.gist.block
        length -= length % self.model.window
        _, _, like = self.reader.full_windows(self.words(self.model.window))
        size = min(COMMIT, length)
        shape = size // block, spec.slots, spec.gist_width
        drawn = (rng.normal(size=shape) * like.std()).astype(ml_dtypes.bfloat16)
        tokens = self.words(size)
        while tree.length < length:
            piece = tokens[: length - tree.length]
            stop = tree.length + len(piece)
            levels = range(1, spec.levels + 1)
            more = {level: stop // spec.span(level) - tree.count(level) for level in levels}
            tree.append(piece, {level: drawn[:count] for level, count in more.items()})
            tree.commit()
        return tree

    def session(self, tree: Tree | None = None, **changes) -> Session:
        return Session(self.opened, tree or self.empty(), self.config(**changes), self.reader)

    def batch(self, trees: Sequence[Tree], **changes) -> SessionBatch:
        return SessionBatch(self.opened, trees, self.config(**changes), self.reader)


def random_weights(path: Path) -> Opened:
    """The model of a config, with parameters as they are before training."""
    config = train.configuration(path, ["--config.corpus=none"])
    model = wrapped_from(config, known_parts([config]))
    params = {}
    for item in ("base", "gistnet", "lensnet"):
        type_ = jnp.dtype(model.dtype if item == "base" else "float32")
        made = jax.jit(lambda key, item=item: init_part(model, item, key))(jax.random.key(0))
        params[item] = jax.tree.map(lambda x: x.astype(type_), made)  # noqa: B023
    return Opened(model, params, Numbers(), "random weights", {})


class Steps:
    """Steps of decoding alone, over rows [lanes] that are all read: `length` of each.

    With a window's rows that is what a session does between two refocuses; with a history's it is
    full attention with a cache of keys and values, in the same code.
    """

    def __init__(self, subject: Subject, length: int, lanes: int):
        self._subject, model = subject, subject.model
        config = subject.config(budget=length)
        self._lanes = lanes_for(model, config, length, subject.reader.prefix, lanes)
        for lane in range(lanes):
            order = np.arange(length)[None]
            self._lanes.stand(lane, np.zeros(1, np.int32), order, np.array([length]))
        empty = rows.Tail(
            rows.empty_tail_rows(model, 1, model.gist.block),
            *(np.int32(0), jnp.zeros(model.base.d_model)),
            *(np.zeros(1, np.int32), np.zeros(1, np.float32)),
        )
        self._tails = reading.side_by_side([empty] * lanes)
        apart = [np.array([one] * lanes) for one in reading.settings_of(Sampling())]
        keys = jnp.stack([jax.random.key(0)] * lanes)
        self._draws = reading.Draws(
            keys, np.zeros(lanes, np.int32), tuple(apart), np.ones(lanes, bool)
        )
        self.bytes = sum(x.nbytes for x in self._lanes.whole().rows)

    def seconds(self, count: int) -> float:
        """Of one step, mean of `count` one after another."""
        model, params = self._subject.model, self._subject.opened.params
        start = self._tails._replace(length=jnp.zeros_like(self._tails.length))
        began = time.perf_counter()
        for _ in range(count):
            kept = start._replace(rows=None)  # the tail stays as short as it is
            static = model, False, "greedy", params, self._lanes.whole()
            self._tails, said = reading.say(
                *static, self._tails.rows, kept, self._draws, np.float32(0.0)
            )
        jax.block_until_ready(said)
        return (time.perf_counter() - began) / count


def bandwidth(megabytes: int, repetitions: int) -> float:
    """Bytes a second at which this machine reads an array, the best of some sums of one."""
    array = jnp.ones(megabytes * 2**18, jnp.float32)
    total = jax.jit(jnp.sum)
    spent = [seconds(lambda: total(array)) for _ in range(repetitions + 1)]
    return array.nbytes / min(spent[1:])


def seconds(action: Callable[[], object]) -> float:
    """Until what an action returns is there."""
    began = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - began


def read_once(model: Wrapped):
    """A program that reads tokens [T] in one go behind the prefix: a full prefill, rows and all."""

    def prefill(params, tokens):
        out = model.decoder.apply(
            {"params": params["base"]}, tokens[None], jnp.arange(len(tokens))[None]
        )
        return out.hidden[:, -1], Rows(*out.rows)

    return jax.jit(prefill)
