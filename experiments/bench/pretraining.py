"""The rows of `bench train`: how fast a base is trained, against PyTorch, against its data, and on
all devices against one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
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
from experiments.configs import pico_base, pico_gist
from mctx import checkpoint, sharding
from mctx.errors import UserError
from mctx.flops import peak, plain_flops
from mctx.models.base import BaseConfig
from mctx.training import base, gist
from mctx.training.loop import (
    Phase,
    TrainSettings,
    abstract_inputs,
    batches_ahead,
    fresh_state,
    jit_step,
)
from mctx.training.sources import Sources

SHORT = dict(base=dict(base=dict(window=128)), gist=dict(history=1024, mixture=dict(allocator=0.0)))
SAME_STEPS = 8  # whose losses are compared
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
    """A phase, compiled for `settings.data` devices; its state goes on from timing to timing."""

    def __init__(self, phase: Phase, settings: TrainSettings):
        self.phase, self.settings = phase, settings
        self.mesh = sharding.mesh(data=settings.data)
        with jax.set_mesh(self.mesh):
            wanted = abstract_inputs(phase, settings, self.mesh)[0]
            self._step = jit_step(phase, settings, wanted, self.mesh)
            self._frozen = sharding.place(phase.frozen, self.mesh)
            self._state, self._at = fresh_state(phase, settings, wanted, self._frozen), 0

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
        at = np.int32(self._at)
        self._state, metrics = self._step(self._state, self._frozen, batch, at)
        self._at += 1
        return metrics

    def losses(self, steps: int) -> np.ndarray:
        """Of the next steps."""
        with jax.set_mesh(self.mesh):
            ready = batches_ahead(self.phase, self._at + steps, self.mesh, self._at)
            return np.array([float(self._made(batch)["loss"]) for _, batch in ready])

    def forward_flops(self) -> float:
        """Of one batch's loss."""
        with jax.set_mesh(self.mesh):
            state, frozen, batch, _ = abstract_inputs(self.phase, self.settings, self.mesh)
            loss = self.phase.loss
            return plain_flops(lambda p, b: loss(p, frozen, b, None), state.params, batch)


def of_config(config: ConfigDict, rows: int, sources: Sources, devices: int = 1) -> Trained:
    config = train.over_defaults(config)
    config.update(batch_size=rows, eval_segments=1, eval_batch=1)
    if jax.default_backend() == "cpu":
        config.dtype = "float32"
    config.train.update(data=devices, fsdp=1, grad_accum=1, steps=10**6)
    of = {"base": base, "gist": gist}[config.phase]
    phase = replace(of.phase(config, sources), evaluate=None)
    return Trained(phase, TrainSettings(**config.train))


def drawn_from(vocab: int, load: Callable = lambda items: ({}, {})) -> Sources:
    """Tokens by chance, the same at every step; `load`: of the parts before."""

    def drawn(length, batch, seed, step, rows):
        rng = np.random.default_rng(seed)
        return rng.integers(vocab, size=(batch, length), dtype=np.int32)[rows]

    return Sources(load, *[drawn] * 5)


def step(sizes: Sizes, args: argparse.Namespace) -> list[dict]:
    """A step of pre-training on drawn tokens: tokens a second, the share of the peak, PyTorch's."""
    # First: later this process holds the memory.
    shape = BaseConfig.from_dict(sizes.config.base.to_dict()).to_dict()
    theirs = stock_training.measured(shape, sizes.rows, sizes.steps)
    made = of_config(sizes.config, sizes.rows, drawn_from(sizes.config.base.vocab_size))
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


def devices(sizes: Sizes, args: argparse.Namespace) -> list[dict]:
    """Phases base and gist of the pico on all devices against one: with as many times the rows
    (weak scaling), and with the same (strong)."""
    found = []
    for said, count, config, sources in _phases(args):
        rows = count if small(args) else config.batch_size
        kinds = (1, rows), (count, count * rows), (count, rows)
        timed = [of_config(config, many, sources, n) for n, many in kinds]
        times = np.array(
            [[t.seconds(t.phase, sizes.steps) for t in timed] for _ in range(sizes.repetitions)]
        )[1:].T
        weak, strong = count * times[0] / times[1], times[0] / times[2]
        goal = round(0.925 * count, 2)
        found += [
            row(f"{said}, {count} × the rows: tokens a second", weak, "×", f"≥ {goal}",
                np.median(weak) >= goal, ms=1e3 * float(np.median(times[1]))),
            row(f"{said}, the same rows", strong, "×", "", True,
                ms=1e3 * float(np.median(times[2]))),
        ]  # fmt: skip
    return found


def losses(sizes: Sizes, args: argparse.Namespace) -> Iterator[dict]:
    """What the losses of those phases on all devices differ by from those on one, a row of a batch
    a device: in float32, in products too, which is not how a GPU makes them by itself; and in the
    type that they are trained in."""
    for said, count, config, sources in _phases(args):
        kinds = ("float32", "highest"), (config.dtype, None)  # a CPU has float32 alone
        for dtype, products in kinds[: 1 if jax.default_backend() == "cpu" else 2]:
            config.dtype = dtype
            with jax.default_matmul_precision(products):
                one, every = (
                    of_config(config, count, sources, n).losses(SAME_STEPS) for n in (1, count)
                )
            apart, most = np.abs(every - one), float(np.abs(every - one).max())
            what = f"{said}, {dtype}: losses of {SAME_STEPS} steps differ by"
            yield row(what, apart, "nats", "≤ 1e-05", most <= 1e-5, most=most)


def _phases(args) -> Iterator[tuple[str, int, ConfigDict, Sources]]:
    """What is said of each phase, how many devices there are, and what it is trained with."""
    count = jax.device_count()
    if count == 1:
        raise UserError("parts 'devices' and 'losses' want more than one device.")
    sources = drawn_from(
        pico_base.get_config().base.vocab_size,
        lambda items: checkpoint.load_items(args.checkpoint, items),
    )
    for config in pico_base.get_config(), pico_gist.get_config():
        if small(args):  # as short as its parts allow
            config.update(SHORT[config.phase])
        yield f"{count} devices against one, phase {config.phase}", count, config, sources


def repeated(phase: Phase) -> Phase:
    """The phase, with its first batch in place of every other."""
    first = phase.batch(0, slice(None))
    return replace(phase, batch=lambda step, rows: {n: x[rows] for n, x in first.items()})


def small(args: argparse.Namespace) -> bool:
    return args.smoke or jax.default_backend() == "cpu"


PARTS = {"step": step, "data": data, "devices": devices, "losses": losses}


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of the parts in --only, or of all for which there is what they need."""
    wanted = [name for name in args.only.split(",") if name]
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"there is no part {', '.join(unknown)}: choose of {', '.join(PARTS)}.")
    if not wanted and not args.corpus:
        print("data is left out: it wants --corpus=DIR.", file=sys.stderr)
    # Another process wants memory of the same device (stock_training.py).
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sizes = Sizes(bases.get_config("300m"), 16, pico_base.get_config().batch_size, 10, 5)
    sizes.config.remat = False  # so many rows fit a device as they are, PyTorch's too
    if small(args):
        sizes = Sizes(pico_base.get_config(), 2, 2, 2, 2)
    rows = []
    for name in wanted or (["step", "data"] if args.corpus else ["step"]):
        for found in PARTS[name](sizes, args):  # each takes minutes: none is lost with the next
            rows = [*rows, found]
            yield rows
