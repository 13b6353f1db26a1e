"""Compiles the steps of a model for machines that are not here, from shapes alone.

    python -m experiments.aot CONFIG… --topology=v5e:2x4 [--config.key=value …] [--json FILE]

CONFIGs are files of experiments/configs, in the order of their phases. For each, the train step is
compiled as `experiments.train` would run it on that topology, mesh and batch included; with
--inference, what a session runs with their parts: ingest, lens, allocator, gists' rows, decode,
with parameters split over all devices. No weights are made. Told are the bytes that each device
needs, operations, and whether it fits; a kernel that does not compile is an error. With --shapes,
in less time, only what needs no compiler is told: a device's share of base, parameters, optimizer
and batch, and the operations of all devices together.

A TPU topology (v5e:2x4, v5e:16x16, v5p:4x4x4 …) needs TPU's compiler, not a TPU: `pip install
-r requirements-tpu-aot.txt`. `cpu:8` compiles for so many fake CPU devices; what those need in
memory says little about any other machine.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from experiments import entry, report, train
from mctx import sharding
from mctx.errors import UserError
from mctx.flops import plain_flops
from mctx.focus import layout
from mctx.models.base import Rows, count_parameters
from mctx.models.finder import width
from mctx.models.wrapped import Wrapped, init_part
from mctx.runtime import finding, focusing, reading
from mctx.runtime.assembly import gist_rows_at_once
from mctx.runtime.config import SessionConfig, focus_configs
from mctx.runtime.rows import Buffer, Tail, TailRows
from mctx.training.loop import TrainSettings, abstract_inputs, check_batch_size, jit_step
from mctx.training.sources import Sources, wrapped_from
from mctx.training.step import make_step
from mctx.tree import ingest

GIB = 2**30
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a device, as its maker states it
# libtpu asks its host what machine it is; nothing here depends on the answers.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken, so none need be kept from others
}
SECTIONS = {"base": ("base",), "gist": ("gist", "window"), "lens": ("lens",)}  # by phase


class Program(NamedTuple):
    """Something to compile. `args`: shapes; those that have a place on the mesh keep it."""

    what: str
    jitted: jax.stages.Wrapped
    function: Callable
    args: tuple

    def flops(self) -> float:
        """Operations of all devices together."""
        return plain_flops(lambda *args: self.function(*args), *self.args)

    def argument_bytes(self) -> int:
        """What one device holds of the arguments."""
        return sum(map(_held, jax.tree.leaves(self.args)))


def _held(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    return math.prod(shape) * jnp.dtype(leaf.dtype).itemsize


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices of `cpu:N` or of a TPU topology; UserError for what cannot be had."""
    kind, _, size = topology.partition(":")
    if kind == "cpu" and size.isdigit():
        try:
            jax.config.update("jax_num_cpu_devices", int(size))
        except RuntimeError:
            pass  # devices have been asked for already: there are as many as there are
        found = jax.devices("cpu")[: int(size)]
        if len(found) < int(size):
            raise UserError(f"{topology} asks for more than the {len(found)} CPU devices made.")
        return found
    if kind not in MEMORY:
        raise UserError(f"topology '{topology}' is unknown: give cpu:N or one of {list(MEMORY)}.")
    os.environ.update(QUIET)
    try:
        found = topologies.get_topology_desc(topology, "tpu").devices
        jax.config.update("jax_enable_compilation_cache", False)  # it reads for real devices only
        return found
    except Exception as error:  # no libtpu, or no such topology: a dozen types
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"no TPU compiler for {topology}: `pip install -r requirements-tpu-aot.txt`, and give "
            f"a topology that exists, like v5e:2x4 ({reason})."
        ) from error


# -- from configs to shapes --------------------------------------------------------------------


def shapes_of(model: Wrapped, item: str, dtype: str = "float32"):
    """The parameters of an item as shapes."""
    tree = jax.eval_shape(lambda key: init_part(model, item, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def shape_sources(config: ConfigDict, known: dict) -> Sources:
    """Sources that give shapes for parameters, and zeros for text."""
    model = wrapped_from(config, known)

    def load(items):
        types = {"base": config.base_dtype}
        return {item: shapes_of(model, item, types.get(item, "float32")) for item in items}, known

    def zeros(length, batch, seed, step, rows):
        return np.zeros((len(np.arange(batch)[rows]), length), np.int32)

    def histories(*, near, far, groups, tail, reach, block, batch, seed, step, rows):
        n, length = len(np.arange(batch)[rows]), near + groups * far
        return np.zeros((n, length + tail), np.int32), np.zeros((n, length // block), np.int32)

    def questions(*, length, tail, block, batch, seed, step, rows):
        tokens, distance = histories(
            near=length, far=0, groups=0, tail=tail, reach=0, block=block, batch=batch, seed=seed,
            step=step, rows=rows,
        )
        return tokens, distance, np.ones(distance.shape, bool)

    return Sources(
        load, zeros, zeros, histories, zeros, histories, questions=questions,
        held_questions=questions,
    )


def known_parts(configs: Sequence[ConfigDict]) -> dict:
    """The `config` item that a checkpoint would have when these phases were trained."""
    known = {}
    for config in configs:
        names = ("base", *SECTIONS.get(config.phase, ()))
        found = {name: config[name] for name in names if config.get(name) is not None}
        known |= {
            name: value.to_dict() if isinstance(value, ConfigDict) else value
            for name, value in found.items()
        }
    if "base" not in known:
        raise UserError("no config says what the base is: give the one of its phase first.")
    return known


# -- what is compiled --------------------------------------------------------------------------


def train_program(config: ConfigDict, known: dict, mesh: Mesh) -> Program:
    """The train step of a phase, as `experiments.train` compiles it."""
    settings = TrainSettings(**config.train)
    sources = shape_sources(config, known)
    phase = import_module(f"mctx.training.{config.phase}").phase(config, sources)
    check_batch_size(phase.batch_size, settings, mesh)
    inputs = abstract_inputs(phase, settings, mesh)
    step_fn = jit_step(phase, settings, inputs[0], mesh)
    step = make_step(phase.loss, settings)
    return Program(f"train step of phase {phase.name}", step_fn, step, inputs)


def session_programs(model: Wrapped, settings: SessionConfig, mesh: Mesh) -> Iterator[Program]:
    """What a session runs, its parameters split over the mesh by the rule, all else whole."""
    params = {item: shapes_of(model, item) for item in ("gistnet", "lensnet")}
    params["base"] = shapes_of(model, "base", model.dtype)
    params = sharding.abstract(params, mesh)
    base, gist, (focus, _) = model.base, model.gist, focus_configs(model, settings)
    heads, top, n = settings.heads, settings.top, focus.capacity

    def of(shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    def rows(*lead):
        shape = (base.n_layers, *lead, base.n_kv_heads, base.head_dim)
        return Rows(of(shape, model.dtype), of(shape, model.dtype))

    def program(what, function, *args):
        return Program(what, jax.jit(function, out_shardings=None), function, args)

    windows = of((ingest.BATCH, model.window))
    yield program("ingest of 4 windows", partial(ingest._read_full, model), params, windows)

    candidates = n + focusing.most_parents(focus, n)
    table = of((2 * heads * candidates + 1, gist.width), jnp.float32)
    told = of((heads, candidates, width(model.lens, base)), jnp.float32)
    nodes = table, of((4, heads, candidates)), told
    query = of((base.n_layers + 1, model.lens.query, base.d_model), jnp.float32)
    if model.lens.finders:
        looking, total, _ = jax.eval_shape(partial(finding.looking, model), params["base"], query)
        some = len(model.lens.finders), finding.PIECE, gist.block, base.head_dim
        found = of(some, model.dtype), of((finding.PIECE,), jnp.bool_)
        what = f"refocus: finders, {finding.PIECE} blocks"
        yield program(what, finding.attended, looking, *found, total)
    lens = partial(focusing._apply_lens, model)
    yield program("refocus: lens", lens, params["lensnet"], query, *nodes, of((heads,)))
    layouts = jax.eval_shape(
        lambda: jax.tree.map(
            lambda x: jnp.broadcast_to(x, (heads, *x.shape)), layout.initial(focus, 1)
        )
    )
    scores = focusing.Scores(*[of((heads, n), jnp.float32)] * 2)
    yield program(
        "refocus: allocator", partial(focusing.edit, focus), layouts, scores, of(()), of(())
    )
    gists = of((gist_rows_at_once(gist), 1, gist.width), jnp.float32)
    yield program(
        "refocus: rows of gists", partial(reading.rows_of_gists, model), params, gists
    )
    buffer = Buffer(rows(1, len(base.prefix)), rows(top, focus.budget), of((top,)))
    own = rows(top, settings.every * gist.block)
    tail = Tail(
        TailRows(*own, own.k),
        of(()),
        of((base.d_model,), jnp.float32),
        of((top,)),
        of((top,), jnp.float32),
    )
    decode = partial(reading.extend, model, False)
    bias = of((), jnp.float32)
    yield program("decode of one token", decode, params, buffer, tail, of((1,)), of(()), bias)


# -- what is told ------------------------------------------------------------------------------


def shapes_row(program: Program, mesh: Mesh) -> dict:
    """What is known of a program without compiling it."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        flops = program.flops()
    held = program.argument_bytes() / GIB
    return {
        "what": f"{program.what}: arguments", "value": held, "unit": "GiB a device",
        "TFLOP of all": flops / 1e12,
    }  # fmt: skip


def compiled_row(program: Program, mesh: Mesh, limit: int | None) -> dict:
    """Compiles a program and says what one device needs for it, in GiB."""
    began = time.perf_counter()
    Console(stderr=True).print(f"compiling {program.what}", highlight=False)
    # The mesh itself cannot be in context: constants would be sought on devices that are not here.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        flops = program.flops() / mesh.size
        try:
            memory = program.jitted.lower(*program.args).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _row(program, None, flops, began, f"no: {' '.join(str(error).split())[:200]}")
    fits = "" if limit is None else "yes" if _total(memory) <= limit * GIB else "no"
    return _row(program, memory, flops, began, fits)


def _total(memory) -> int:
    """Arguments, results that are not written over them, and temporaries, all at once."""
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes


def _row(program: Program, memory, flops: float, began: float, fits: str) -> dict:
    sizes = [None] * 3
    if memory is not None:
        parts = (_total(memory), memory.argument_size_in_bytes, memory.temp_size_in_bytes)
        sizes = [part / GIB for part in parts]
    return {
        "what": program.what,
        "value": sizes[0] if memory is not None else float("inf"),
        "unit": "GiB a device",
        "arguments": sizes[1],
        "temporaries": sizes[2],
        "GFLOP a device": flops / 1e9,
        "seconds to compile": time.perf_counter() - began,
        "fits": fits,
    }


def programs(args: argparse.Namespace, configs, known, devices) -> Iterator[tuple[Program, Mesh]]:
    """What is asked for, and the mesh that it is for."""
    if args.inference:
        mesh = sharding.mesh(data=1, fsdp=len(devices), devices=devices)
        settings = SessionConfig(
            budget=args.budget, heads=args.heads, top=args.heads, capacity=args.budget
        )
        model = wrapped_from(configs[-1], known)
        for program in session_programs(model, settings, mesh):
            yield program, mesh
        return
    for config in configs:
        settings = TrainSettings(**config.train)
        mesh = sharding.mesh(settings.data, settings.fsdp, settings.head, devices)
        yield train_program(config, known, mesh), mesh


def run(args: argparse.Namespace, overrides: list[str]) -> Iterator[tuple[list[dict], list[str]]]:
    """After each program, the rows so far, and notes on what they were compiled for."""
    devices = devices_of(args.topology)
    limit = MEMORY.get(args.topology.partition(":")[0])
    given = [*overrides, "--config.corpus=none"]
    configs = [train.configuration(path, given) for path in args.configs]
    known = known_parts(configs)
    base = count_parameters(shapes_of(wrapped_from(configs[-1], known), "base")) / 1e9
    rows = []
    for program, mesh in programs(args, configs, known, devices):
        row = shapes_row(program, mesh) if args.shapes else compiled_row(program, mesh, limit)
        rows.append(row)
        axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        note = (
            f"{len(devices)} × {devices[0].device_kind}, {axes}; a base of {base:.3g} billion "
            f"parameters" + (f"; {limit} GiB a device." if limit else ".")
        )
        yield rows, [note]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", type=Path, nargs="+", help="files of experiments/configs")
    parser.add_argument("--topology", default="v5e:2x4", help="TPU's, or cpu:N")
    parser.add_argument("--inference", action="store_true", help="a session, not training")
    parser.add_argument("--shapes", action="store_true", help="compile nothing: see above")
    parser.add_argument("--budget", type=int, default=4096, help="a session's, in entries")
    parser.add_argument("--heads", type=int, default=1, help="a session's")
    parser.add_argument("--name", default="aot", help="of the result")
    parser.add_argument("--json", type=Path, help="the result file; default: runs/NAME.json")
    args, overrides = parser.parse_known_args(arguments)
    path = args.json or Path("runs") / f"{args.name}.json"
    command = entry.command(parser, arguments)
    entry.check_file(path)
    for rows, notes in run(args, overrides):  # a compile may take long: none is lost with the next
        entry.write_result(path, command, 0, rows, name=args.name, notes=notes)
    report.print_table(report.load_result(path), Console())


if __name__ == "__main__":
    entry.run(main)
