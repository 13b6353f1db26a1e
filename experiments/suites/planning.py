"""How large a suite is, unless asked otherwise, and where its texts come from."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

from data.tasks.haystack import open_haystack
from data.tasks.sample import encoder_of
from experiments.methods import METHODS, Protocol
from experiments.suites import Asking, long_nll
from experiments.suites.texts import HELD_OUT, streams
from experiments.suites.trials import Plan, available
from mctx.errors import UserError
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened
from mctx.tree.ingest import Reader

TAIL = 128  # tokens after a history that full attention must still be able to read
SCALES = {"k": 1024, "m": 1024**2}
# Of tasks: one a kind. More of them, and the bounds that see the future, by `--methods`.
FEW = (
    "full",
    "sinks+recent",
    "random",
    "bm25",
    "attention",
    "lens",
    "lens+gists",
    "handed",
)


class Size(NamedTuple):
    """Defaults of a suite: lengths beyond what fits the trained window, samples, methods."""

    lengths: tuple[int, ...]
    samples: int
    methods: tuple[str, ...] = FEW


# Without support nothing can be handed; exact leave-one-in costs a pass a block.
LEFT_OUT = ("handed", "leave-one-in crossfit")
SIZES = {  # together some twenty minutes for the shipped checkpoint on two cores
    "long_nll": Size((8192, 32768), 1, tuple(m for m in METHODS if m not in LEFT_OUT)),
    "retrieval": Size((8192,), 2),
    "distractors": Size((8192,), 2),
    "facts": Size((8192,), 4),
    "kv": Size((8192,), 2),
    "edits": Size((8192,), 3),
    "descent": Size((8192, 65536), 1, ("lens",)),
}
SMOKE_METHODS = ("random", "lens")
SMOKE_TEXTS = 4
SMOKE = dict(depths=(0.0, 1.0), distractors=(0, 4), budgets=())


def plan_of(
    name: str, suite: Asking, args: argparse.Namespace, reader: Reader, opened: Opened
) -> tuple[Plan, list[str]]:
    """The plan that the flags ask for, and notes on its texts."""
    size, model = SIZES[name], opened.model
    checkpoint = args.workdir or args.checkpoint
    lengths = args.lengths or _lengths(model, () if args.smoke else size.lengths)
    bad = [n for n in lengths if n % model.gist.block or n < model.gist.block]
    if bad:
        raise UserError(f"--lengths are whole blocks of {model.gist.block} tokens; not {bad[0]}.")
    few = [m for m in SMOKE_METHODS if m in size.methods]
    wanted = args.methods or (few if args.smoke else size.methods)
    methods = tuple(m for m in METHODS if m in {*wanted, *suite.needs})
    samples = args.samples or (1 if args.smoke else size.samples)
    protocol = Protocol(budget=args.budget, seed=args.seed)
    shape = dict(depths=tuple(args.depths), distractors=tuple(args.distractors))
    shape["budgets"] = tuple(args.budgets)
    plan = Plan(
        opened,
        reader,
        protocol,
        available(opened, methods),
        tuple(sorted(set(lengths))),
        samples=samples,
        **(SMOKE if args.smoke else shape),
    )
    if name == "long_nll":
        few = SMOKE_TEXTS if args.smoke else None
        return _with_texts(plan, args.input or [HELD_OUT], checkpoint, few)
    return _with_haystack(plan, args.haystack), []


def _with_texts(
    plan: Plan, sources: list[str], checkpoint: Path, few: int | None
) -> tuple[Plan, list[str]]:
    """The plan with its texts, of all the first `few`; and notes."""
    least = long_nll.least_tokens(plan.lengths, plan.samples, plan.tail)
    found, notes = streams(sources, checkpoint, plan.opened.tokenizer, least, 2 * least)
    return dataclasses.replace(plan, streams=found[:few]), notes


def _with_haystack(plan: Plan, source: str | None) -> Plan:
    if source is None:
        return plan
    opened = open_haystack(encoder_of(plan.opened.tokenizer), source)
    return dataclasses.replace(plan, haystack=opened)


def nearest(model: Wrapped) -> int:
    """The longest history of whole ingest windows that full attention reads with its tail."""
    room = model.base.window - len(model.base.prefix) - TAIL
    return max(room // model.window, 1) * model.window


def _lengths(model: Wrapped, longer: tuple[int, ...]) -> tuple[int, ...]:
    near = nearest(model)
    return (near, *(length for length in longer if length > near))


def tokens(text: str) -> int:
    """`1536`, `8k` (8 × 1,024) or `1m` as a number."""
    scale = SCALES.get(text[-1:].lower(), 1)
    try:
        return int(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of tokens") from None
