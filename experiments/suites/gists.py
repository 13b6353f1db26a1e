"""What gists alone recover of a short history, level by level (`mctx.training.gist`); and what as
few rows recover that nobody trained: those of every n-th token, and the means of n."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.suites import Suite
from experiments.suites.masks import masked_nll
from experiments.suites.rows import in_batches, recovered_rows
from experiments.suites.segments import Segments
from mctx.focus.bank import BankShape, make_bank, plain_context
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped, tail_nll
from mctx.opened import Opened

PLAIN = "last", "mean"  # what stands for n tokens


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Tokens of history, shown as nodes of one level, and of the continuation that is scored.

    `ratios`: tokens an entry, of rows that nobody trained.
    """

    history: int = 512
    tail: int = 128
    ratios: tuple[int, ...] = (32, 8)


def length(model: Wrapped, protocol: Protocol = Protocol()) -> int | None:
    room = model.base.window >= protocol.history + protocol.tail + len(model.base.prefix)
    return protocol.history + protocol.tail + 1 if room else None


def measure(
    opened: Opened, segments: Segments, seed: int, protocol: Protocol = Protocol()
) -> dict[str, list[dict]]:
    """Segments [n, history + tail + 1] -> rows recent (nothing shown), lod1, lod2, …, full."""
    model, params = opened.model, opened.params
    shape = BankShape(model.gist, protocol.history // model.gist.block)
    levels = whole_levels(model, protocol)
    ways = {f"lod{level}": shape.node_level == level for level in levels}
    tokens_shown = shape.node_level == 0
    shown = np.stack([np.zeros_like(tokens_shown), tokens_shown, *ways.values()])  # [S, N]

    @jax.jit
    def score(params, tokens):
        history, tail = jnp.split(tokens, [protocol.history], axis=1)
        bank = make_bank(model, params, history)
        masks = jnp.broadcast_to(shown[:, None], (len(shown), len(tokens), shown.shape[1]))
        nll = masked_nll(model, params, shape, bank, tail, masks, protocol.tail).mean(axis=-1)
        rows = Rows(*(x[:, :, : protocol.history] for x in bank.rows))
        fewer = [plain_nll(params, bank.prefix, some, tail) for some in untrained(rows, protocol)]
        return jnp.concatenate([nll, *fewer], axis=1)

    def plain_nll(params, prefix, rows, tail):
        context, start = plain_context(prefix, rows)
        return tail_nll(model, params, tail, context, start).mean(axis=1, keepdims=True)

    none, full, *each = in_batches(functools.partial(score, params), segments.tokens).T
    few = {f"{how} of {n}": protocol.history // n for n in protocol.ratios for how in PLAIN}
    named = dict(zip([*ways, *few], each, strict=True))
    rows = recovered_rows(none, full, named, segments.units, seed)
    entries = {"recent": 0, "full": protocol.history}
    entries |= {f"lod{level}": shape.counts()[level] * model.gist.slots for level in levels}
    entries |= few
    unlearned = {f"lod{level}" for level in levels if level > model.gist.trained}
    for row in rows:
        row |= {"entries": entries[row["what"]], "trained": row["what"] not in unlearned}
    return {"gists": rows}


def untrained(rows: Rows, protocol: Protocol) -> list[Rows]:
    """By ratio n, the rows [L, B, T, K, H] of the last of n tokens each, and the means of n."""
    some = []
    for n in protocol.ratios:
        by = Rows(*(x.reshape(*x.shape[:2], -1, n, *x.shape[3:]) for x in rows))
        some += [Rows(*(x[:, :, :, -1] for x in by)), Rows(*(x.mean(axis=3) for x in by))]
    return some


def whole_levels(model: Wrapped, protocol: Protocol) -> list[int]:
    """Levels whose nodes tile the history."""
    levels = range(1, model.gist.levels + 1)
    return [level for level in levels if protocol.history % model.gist.span(level) == 0]


SUITE = Suite(
    ("base", "gistnet"),
    length,
    measure,
    (
        "A history of 512 tokens, shown as nodes of one level alone; NLL of the next 128. *last "
        "of* n, *mean of* n: keys and values of every n-th token, of n in the mean; untrained.",
    ),
)
