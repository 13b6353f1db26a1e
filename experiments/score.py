"""Negative log likelihood of every token of a text, under one way of showing what came before.

    python -m experiments.score --checkpoint=DIR --input=FILE --method=full|window|focus \\
        [--budget=W] --out=FILE.npz [--json=FILE]

FILE is UTF-8 text, or token ids in a one-dimensional .npy. The output holds two arrays of equal
length: `ids`, and `nll` in nats; nll[i] is token i given what the method shows before it, and
nll[0] is NaN. The base's prefix stands before everything, in every method, and costs nothing.

full: the base reads all tokens; exactly the NLL of the plain base. Needs the item base.
window: sinks and recent tokens, as in StreamingLLM. The text is read in chunks of K = K_1 tokens
  (32 where there is no GistNet). Before each chunk stand the first K tokens and the last W - K, or
  all where there are no more: never over W entries. Their keys and values stay as they were read;
  positions are contiguous from the prefix on. The tokens of the chunk see each other besides, as
  those of a focus's tail do, so that both methods have the same budget. Needs base.
focus: a session of budget W on a tree in memory; its tail, at most K tokens, comes on top of the
  W entries. Needs base, gistnet and lensnet.
"""

import argparse
import functools
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import entry
from experiments.sessions import ensure_room, open_for_ids
from experiments.statistics import Interval, ratio
from mctx.errors import UserError
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Read, Rows, token_nll
from mctx.models.wrapped import Wrapped, prefix_rows, read
from mctx.opened import Opened, open_checkpoint
from mctx.runtime import Session, SessionConfig

PREFILL = 256  # tokens of a chunk when the base reads everything
SEGMENT = 512  # consecutive tokens that the bootstrap resamples together


class Window(NamedTuple):
    """Rows [L, 1, P + W, K, H] in time order, the prefix first; `count` are valid behind it."""

    rows: Rows
    count: jax.Array


def full(opened: Opened, ids: np.ndarray, budget: int) -> np.ndarray:
    """NLL of ids[1:] given everything before: [n - 1]. The budget is not used."""
    return windowed_nll(opened, ids, -(-len(ids) // PREFILL) * PREFILL, PREFILL, 0)


def window(opened: Opened, ids: np.ndarray, budget: int) -> np.ndarray:
    """NLL of ids[1:] behind sinks and recent tokens, `budget` entries of them: [n - 1]."""
    block = opened.model.gist.block
    check_window(budget, block)
    return windowed_nll(opened, ids, budget, block, block)


def check_window(budget: int, block: int) -> None:
    """UserError where sinks and recent tokens do not fit."""
    if budget < 2 * block:
        raise UserError(
            f"a budget of {budget} does not hold the first block and a recent one of {block} "
            f"tokens: give at least {2 * block}."
        )


def focus(opened: Opened, ids: np.ndarray, budget: int) -> np.ndarray:
    """NLL of ids[1:] streamed through a session: [n - 1]."""
    tree = f"memory://score-{os.getpid()}-{time.monotonic_ns()}"
    session = Session(opened, tree, SessionConfig(budget=budget))
    ensure_room(session.focus, 0, len(ids) // opened.model.gist.block)
    return session.predict(ids)[1:]


METHODS = {
    "full": (full, ("base",)),
    "window": (window, ("base",)),
    "focus": (focus, ("base", "gistnet", "lensnet")),
}


def windowed_nll(
    opened: Opened, ids: np.ndarray, budget: int, chunk: int, sinks: int
) -> np.ndarray:
    """NLL of ids[1:], read chunk by chunk behind the first `sinks` rows and the most recent ones.

    Args:
      budget: rows that stand before a chunk, the sinks among them. No fewer than the ids: nothing
        ever leaves, and this is the plain base. Everything has one shape, whatever the length.
    """
    model, c = opened.model, opened.model.base
    held = empty_window(opened, budget)
    padded = np.pad(ids, (0, -len(ids) % chunk + 1)).astype(np.int32)
    nll = []
    for at in range(0, len(ids), chunk):
        tokens = padded[at : at + chunk + 1]
        held, each = read_chunk(model, sinks + len(c.prefix), opened.params, held, tokens)
        nll.append(np.asarray(each))
    return np.concatenate(nll)[: len(ids) - 1]


def empty_window(opened: Opened, budget: int) -> Window:
    """The prefix's rows, and room for `budget` more."""
    room = ((0, 0), (0, 0), (0, budget), (0, 0), (0, 0))
    prefix = prefix_rows(opened.model, opened.params)
    return Window(Rows(*(jnp.pad(x, room) for x in prefix)), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def read_chunk(
    model: Wrapped, fixed: int, params: dict, held: Window, tokens: jax.Array
) -> tuple[Window, jax.Array]:
    """Reads tokens[:-1] behind a window and adds their rows; the oldest rows past `fixed` leave.

    Returns:
      The window behind the chunk, and the NLL of tokens[1:].
    """
    out = read_behind(model, params, held, tokens[:-1])
    nll = token_nll(params["base"], out.hidden, tokens[None, 1:])[0]
    return slid(held, out.rows, len(model.base.prefix), fixed), nll


def read_behind(model: Wrapped, params: dict, held: Window, tokens: jax.Array) -> Read:
    """Reads tokens [n] behind a window's valid rows, at the positions that follow them."""
    start = len(model.base.prefix) + held.count
    place = jnp.arange(held.rows.k.shape[2])
    context = Context(held.rows, place[None], jnp.where(place < start, 0.0, NEGATIVE)[None])
    positions = (start + jnp.arange(len(tokens)))[None]
    return read(model, params, tokens[None], positions, context)


def slid(held: Window, new: Rows, prefix: int, fixed: int) -> Window:
    """The window with rows [L, 1, n, K, H] behind the valid ones.

    The first `fixed` rows, the prefix's among them, stay; of the others the oldest leave.
    """
    size, length = new.k.shape[2], held.rows.k.shape[2]
    start = prefix + held.count
    leaving = jnp.maximum(start + size - length, 0)

    def slide(old, new):
        longer = jnp.pad(old, ((0, 0), (0, 0), (0, size), (0, 0), (0, 0)))
        longer = jax.lax.dynamic_update_slice_in_dim(longer, new, start, axis=2)
        recent = jax.lax.dynamic_slice_in_dim(longer, fixed + leaving, length - fixed, axis=2)
        return jnp.concatenate([longer[:, :, :fixed], recent], axis=2)

    rows = Rows(*(slide(*pair) for pair in zip(held.rows, new, strict=True)))
    return Window(rows, held.count + size - leaving)


def read_ids(path: Path, vocab_size: int) -> np.ndarray:
    """Token ids of a .npy, int32 [n]. UserError where it holds anything else."""
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy: write it with numpy.save.") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"{path} must hold one row of integers: the token ids.")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise UserError(
            f"{path} has the id {outside[0]}, but the vocabulary ends at {vocab_size - 1}: "
            "use the tokenizer of this checkpoint."
        )
    return ids.astype(np.int32)


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}: convert it to UTF-8."
        ) from error


def load(checkpoint: Path, source: Path, items: tuple[str, ...]) -> tuple[Opened, np.ndarray]:
    """The checkpoint, and the ids of the input, which must be two or more."""
    if not source.is_file():
        raise UserError(f"there is no file {source}: give UTF-8 text, or token ids as .npy.")
    if source.suffix == ".npy":
        opened = open_for_ids(checkpoint, items)
        ids = read_ids(source, opened.model.base.vocab_size)
    else:
        text = read_text(source)
        opened = open_checkpoint(checkpoint, items)
        ids = opened.tokenizer.encode(text)
    if len(ids) < 2:
        raise UserError(f"{source} has {len(ids)} tokens: give at least two.")
    return opened, ids


def save(path: Path, ids: np.ndarray, nll: np.ndarray) -> None:
    """Writes the arrays whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            np.savez(file, ids=ids, nll=nll)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def mean_nll(nll: np.ndarray) -> Interval:
    """Of the known values, resampling stretches of `SEGMENT` tokens."""
    starts = np.arange(0, len(nll), SEGMENT)
    return ratio(np.add.reduceat(nll, starts), np.diff(starts, append=len(nll)))


def peak_memory() -> int:
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = entry.Parser(
        prog="python -m experiments.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint or workdir")
    parser.add_argument("--input", type=Path, required=True, help="text, or ids as .npy")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--budget", type=int, default=512, help="entries (default: 512)")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--json", type=Path, help="a result file to write")
    args = parser.parse_args(arguments)
    if args.out.suffix != ".npz":
        raise UserError(f"{args.out} would hold NumPy's arrays: give --out a name ending in .npz.")
    for path in filter(None, (args.out, args.json)):
        entry.check_file(path)
    score, items = METHODS[args.method]
    opened, ids = load(args.checkpoint, args.input, items)

    began = time.perf_counter()
    nll = score(opened, ids, args.budget).astype(np.float32)
    rate = len(ids) / (time.perf_counter() - began)
    save(args.out, ids, np.concatenate([[np.float32(np.nan)], nll]))
    mean, memory = mean_nll(nll), peak_memory() / 2**20
    row = {
        "what": args.method,
        **dict(value=mean.value, unit="nats/token", low=mean.low, high=mean.high),
        **dict(n=len(nll), entries=len(ids) if args.method == "full" else args.budget),
        **dict(tokens_per_second=round(rate, 1), peak_memory_mib=round(memory)),
    }
    print(
        f"{args.method}: {len(ids):,} tokens, mean NLL {mean.value:.4f} "
        f"[{mean.low:.4f}, {mean.high:.4f}] nats/token, {rate:,.0f} tokens/s (compilation "
        f"included), peak memory {memory:,.0f} MiB"
    )
    trained = opened.model.base.window
    if args.method == "full" and len(ids) > trained:
        print(f"note: the base was trained on windows of {trained:,} tokens; these are more.")
    if args.json:
        command = entry.command(parser, arguments)
        entry.write_result(args.json, command, 0, [row], name=f"score-{args.method}")


if __name__ == "__main__":
    entry.run(main)
