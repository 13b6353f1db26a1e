"""What `bench runtime` measures: a model, histories made for it, and full attention beside it."""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments.bench import weights
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionBatch, SessionConfig, reading, rows
from mctx.runtime.sampling import Sampling
from mctx.tree.arrays import row_shape
from mctx.tree.ingest import Reader, tree_spec
from mctx.tree.store import Tree

COMMIT = 2**20  # tokens of a made history, between two commits; longer ones are made once
DRAWN = 2**12  # different gists of a made history


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
      long, middle, short: tokens of histories that are compared. full: of the history that full
        attention reads. ingested: tokens that are ingested at once.
      budget: entries of the working context; tokens: generated in one timing; repetitions: of it.
      batches: numbers of sessions; beside: of those that full attention stands beside.
      megabytes: of an array that is summed to know the memory's bandwidth.
    """

    long: int
    middle: int
    short: int
    full: int
    ingested: int
    budget: int
    tokens: int
    repetitions: int
    batches: tuple[int, ...]
    beside: int
    megabytes: int


class Subject:
    """A model whose sessions are timed; its programs are compiled once for all of them."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes):
        self.opened = opened(args)._replace(tokenizer=weights.Numbers())
        self.model, self.sizes, self.seed = self.opened.model, sizes, args.seed
        self.reader = Reader(self.model, self.opened.params)
        self._settings = dict(decide=args.decide, device_bytes=args.device_mib * 2**20)
        self._names = itertools.count()
        self._long: dict[int, Tree] = {}

    def config(self, **changes) -> SessionConfig:
        """A session's, with the budget of these sizes: tokens in focus, and room for as many silent
        nodes as cover the longest history twice. Nothing is looked for by heads of the base: what
        that costs grows with the history (docs/cost.md), and drawn histories have no keys."""
        gist, budget = self.model.gist, self.sizes.budget
        coarsest = self.sizes.long // gist.span(gist.levels)
        fixed = dict(budget=budget, recent=max(1, budget // (4 * gist.block)), show=(True, False))
        room = dict(capacity=max(512, 1 << (2 * coarsest).bit_length()), commit_every=64)
        room |= dict(find=False)
        return SessionConfig(**fixed | room | self._settings | changes)

    def words(self, length: int, which: int = 0) -> np.ndarray:
        """Tokens drawn by chance: [length]."""
        rng = np.random.default_rng([self.seed, which])
        return rng.integers(1, self.model.base.vocab_size, length, np.int32)

    def empty(self) -> Tree:
        spec = tree_spec(self.model, self.opened.fingerprint)
        return Tree.create(f"memory://runtime-{id(self)}-{next(self._names)}", spec)

    def history(self, length: int) -> Tree:
        """A tree of so many tokens that nobody read: gists are drawn, as large as a block's own.

        A long one is made once: whoever asks again goes on behind what was said since.
        """
        if length not in self._long:
            tree = self._history(length)
            if length < COMMIT:
                return tree
            self._long[length] = tree
        return self._long[length]

    def _history(self, length):
        tree, rng = self.empty(), np.random.default_rng(self.seed)
        spec, levels = tree.spec, range(1, tree.spec.levels + 1)
        length -= length % self.model.window
        _, _, like = self.reader.full_windows(self.words(self.model.window))
        size = min(COMMIT, length)
        few = rng.standard_normal((DRAWN, spec.gist_width), np.float32)
        few *= np.std(np.asarray(like, np.float32))
        few = few.astype(ml_dtypes.bfloat16)
        shapes = {n: (size // spec.span(n) + 1, *row_shape(spec, n)) for n in levels}
        drawn = {n: np.resize(few, shape) for n, shape in shapes.items()}
        tokens = self.words(size)
        while tree.length < length:
            piece = tokens[: length - tree.length]
            stop = tree.length + len(piece)
            more = {level: stop // spec.span(level) - tree.count(level) for level in levels}
            tree.append(piece, {level: drawn[level][:count] for level, count in more.items()})
            tree.commit()
        return tree

    def session(self, tree: Tree | None = None, **changes) -> Session:
        return Session(self.opened, tree or self.empty(), self.config(**changes), self.reader)

    def batch(self, trees: Sequence[Tree], **changes) -> SessionBatch:
        return SessionBatch(self.opened, trees, self.config(**changes), self.reader)


def opened(args: argparse.Namespace) -> Opened:
    """What is measured: a checkpoint, or random weights of a config or of a model by name."""
    if args.model:
        return weights.drawn(weights.MODELS[args.model]())
    if args.config:
        return weights.drawn(weights.of_config(args.config))
    return open_checkpoint(args.checkpoint, dtype=args.dtype)


class Steps:
    """Steps of decoding alone, over rows [lanes] that are all read: `length` of each.

    With a window's rows that is what a session does between two refocuses; with a history's it is
    full attention with a cache of keys and values, in the same code.
    """

    def __init__(self, subject: Subject, length: int, lanes: int):
        self._subject, model = subject, subject.model
        base = model.base
        shape = base.n_layers, lanes, length, base.n_kv_heads, base.head_dim
        one = jax.random.normal(jax.random.key(0), shape[-2:], jnp.dtype(model.dtype))
        prefix = rows.turned_prefix(model, subject.reader.prefix)
        held = Rows(*(jnp.broadcast_to(one, shape) for _ in range(2)))
        self._buffer = rows.Buffer(prefix, held, np.full((lanes, 1), length, np.int32))
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
        self.bytes = sum(x.nbytes for x in held)

    def seconds(self, count: int) -> float:
        """Of one step, mean of `count` one after another."""
        model, params = self._subject.model, self._subject.opened.params
        start = self._tails._replace(length=jnp.zeros_like(self._tails.length))
        began = time.perf_counter()
        for _ in range(count):
            kept = start._replace(rows=None)  # the tail stays as short as it is
            static = model, False, "greedy", params, self._buffer
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


def on_device() -> int:
    """Bytes of all arrays that JAX holds."""
    return sum(x.nbytes for x in jax.live_arrays())


@functools.cache
def hidden_of_windows(model: Wrapped):
    """A program that reads windows [n, window] behind the prefix: the last hidden states' sum."""

    def read(params, windows):
        prefix = jnp.array(model.base.prefix, jnp.int32)
        prefix = jnp.broadcast_to(prefix, (len(windows), len(prefix)))
        tokens = jnp.concatenate([prefix, windows], axis=1)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        out = model.decoder.apply({"params": params["base"]}, tokens, positions)
        return jnp.sum(out.hidden, axis=(1, 2))

    return jax.jit(read)


def read_once(model: Wrapped):
    """A program that reads tokens [T] in one go behind the prefix: a full prefill, rows and all."""

    def prefill(params, tokens):
        out = model.decoder.apply(
            {"params": params["base"]}, tokens[None], jnp.arange(len(tokens))[None]
        )
        return out.hidden[:, -1], Rows(*out.rows)

    return jax.jit(prefill)
