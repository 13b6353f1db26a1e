"""The rows of `bench train`: how fast a base is trained, against PyTorch and against its data."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data.mixture import domains_of
from experiments import train
from experiments.bench import stock_training
from experiments.bench.measure import row
from experiments.configs import base as bases
from experiments.configs import pico_base
from mctx import sharding
from mctx.errors import UserError
from mctx.flops import peak, plain_flops
from mctx.models.base import BaseConfig
from mctx.training import base
from mctx.training.loop import (
    Phase,
    TrainSettings,
    abstract_inputs,
    batches_ahead,
    fresh_state,
    jit_step,
)
from mctx.training.sources import Sources

INTERVAL = "quartiles of the repetitions"
NOTES = [
    "MFU: three times the matrix products of the forward pass, attention counted as the full "
    "square, over the device's peak in bfloat16; what a backward pass computes again is not work.",
    "PyTorch: LlamaForCausalLM of the same shape in a process of its own, float32 parameters under "
    "bfloat16 autocast, `torch.compile`, SDPA, fused AdamW; batch and length are the same.",
    "A repeated batch is one that is ready; the others are drawn from the corpus, as in training.",
]


class Sizes(NamedTuple):
    """config: of the base. rows: of a batch, and of the pico's; steps: in one timing;
    repetitions: of it."""

    config: ConfigDict
    rows: int
    pico_rows: int
    steps: int
    repetitions: int


class Trained:
    """A phase on one device, compiled, whose state goes on from timing to timing."""

    def __init__(self, phase: Phase, settings: TrainSettings):
        self.phase, self.settings = phase, settings
        self.mesh = sharding.mesh(data=1)
        with jax.set_mesh(self.mesh):
            wanted = abstract_inputs(phase, settings, self.mesh)[0]
            self._step = jit_step(phase, settings, wanted, self.mesh)
            self._state, self._at = fresh_state(phase, settings, wanted, {}), 0

    def seconds(self, phase: Phase, steps: int) -> float:
        """Of a step, mean of `steps` whose batches come from `phase`."""
        with jax.set_mesh(self.mesh):
            ready = batches_ahead(phase, self._at + steps + 1, self.mesh, self._at)
            _, batch = next(ready)
            jax.block_until_ready((batch, self._made(batch)))
            began = time.perf_counter()
            for _, batch in islice(ready, steps):
                metrics = self._made(batch)
            jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / steps

    def _made(self, batch):
        self._state, metrics = self._step(self._state, {}, batch, np.int32(self._at))
        self._at += 1
        return metrics

    def forward_flops(self) -> float:
        """Of one batch's loss."""
        with jax.set_mesh(self.mesh):
            state, frozen, batch, _ = abstract_inputs(self.phase, self.settings, self.mesh)
            loss = self.phase.loss
            return plain_flops(lambda p, b: loss(p, frozen, b, None), state.params, batch)


def of_config(config: ConfigDict, rows: int, sources: Sources) -> Trained:
    config = train.over_defaults(config)
    config.update(batch_size=rows, eval_segments=1, eval_batch=1)
    if jax.default_backend() == "cpu":
        config.dtype = "float32"
    config.train.update(data=1, fsdp=1, grad_accum=1, steps=10**6)
    phase = replace(base.phase(config, sources), evaluate=None)
    return Trained(phase, TrainSettings(**config.train))


def step(sizes: Sizes, args: argparse.Namespace) -> list[dict]:
    """A step of pre-training on drawn tokens: tokens a second, the share of the peak, PyTorch's."""
    vocab = sizes.config.base.vocab_size

    def drawn(length, batch, seed, step, rows):
        rng = np.random.default_rng(seed)
        return rng.integers(vocab, size=(batch, length), dtype=np.int32)[rows]

    # First: later this process holds the memory.
    shape = BaseConfig.from_dict(sizes.config.base.to_dict()).to_dict()
    theirs = stock_training.measured(shape, sizes.rows, sizes.steps)
    made = of_config(sizes.config, sizes.rows, Sources(lambda items: ({}, {}), *[drawn] * 5))
    phase = repeated(made.phase)
    made.seconds(phase, 1)
    times = np.array([made.seconds(phase, sizes.steps) for _ in range(sizes.repetitions)])
    tokens = sizes.rows * sizes.config.base.window
    speed = peak(jax.devices()[0].device_kind)
    found = [row("tokens a second of pre-training", tokens / times, "tokens/s", "", True)]
    if speed:
        shares = 3 * made.forward_flops() / speed / times
        found.append(row("MFU", shares, "×", "≥ 0.4", np.median(shares) >= 0.4))
    if isinstance(theirs, str):
        return [*found, {"what": f"PyTorch: {theirs}", "value": None, "unit": "", "n": 0}]
    ratios = np.median(theirs) / times
    what = "as fast as PyTorch, compiled"
    more = dict(torch_tokens_per_s=tokens / float(np.median(theirs)))
    return [*found, row(what, ratios, "×", "≥ 1", np.median(ratios) >= 1, **more)]


def data(sizes: Sizes, args: argparse.Namespace) -> list[dict]:
    """Steps of the pico base on batches drawn from a corpus, against one batch again and again."""
    if not args.corpus:
        raise UserError("part 'data' wants --corpus=DIR, made with `python -m data.corpus`.")
    config = ConfigDict(pico_base.get_config())
    config.corpus = str(args.corpus)
    config.domains = {name: config.domains.get(name, 1.0) for name in domains_of(args.corpus)}
    sources = train.open_sources(train.over_defaults(config), Path("."))
    made = of_config(config, sizes.pico_rows, sources)
    same = repeated(made.phase)
    for phase in (same, made.phase):
        made.seconds(phase, 2)
    pairs = [
        [made.seconds(phase, sizes.steps) for phase in (made.phase, same)]
        for _ in range(2 * sizes.repetitions)
    ]
    real, ready = np.array(pairs).T
    ratios, what = real / ready, "a step on drawn batches, of one on a repeated batch (pico)"
    more = dict(ms=1e3 * float(np.median(real)))
    return [row(what, ratios, "×", "≤ 1.03", np.median(ratios) <= 1.03, **more)]


def repeated(phase: Phase) -> Phase:
    """The phase, with its first batch in place of every other."""
    first = phase.batch(0, slice(None))
    return replace(phase, batch=lambda step, rows: {n: x[rows] for n, x in first.items()})


PARTS = {"step": step, "data": data}


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of the parts in --only, or of all for which there is what they need."""
    wanted = [name for name in args.only.split(",") if name]
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    if not wanted and not args.corpus:
        print("data is left out: it wants --corpus=DIR.", file=sys.stderr)
    # Another process wants memory of the same device (stock_training.py).
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    small = args.smoke or jax.default_backend() == "cpu"
    sizes = Sizes(bases.get_config("300m"), 16, pico_base.get_config().batch_size, 10, 5)
    sizes.config.remat = False  # so many rows fit a device as they are, PyTorch's too
    if small:
        sizes = Sizes(pico_base.get_config(), 2, 2, 2, 2)
    rows = []
    for name in wanted or (["step", "data"] if args.corpus else ["step"]):
        rows = rows + PARTS[name](sizes, args)
        yield rows
