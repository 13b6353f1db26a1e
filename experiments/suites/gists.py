"""What gists alone recover of a short history, level by level (`mctx.training.gist`)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.suites import Suite
from experiments.suites.masks import masked_nll
from experiments.suites.rows import in_batches, recovered_rows
from mctx.focus.bank import BankShape, make_bank
from mctx.models.wrapped import Wrapped


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Tokens of history, shown as nodes of one level, and of the continuation that is scored."""

    history: int = 512
    tail: int = 128


def length(model: Wrapped, protocol: Protocol = Protocol()) -> int | None:
    room = model.base.window >= protocol.history + protocol.tail + len(model.base.prefix)
    return protocol.history + protocol.tail + 1 if room else None


def measure(
    model: Wrapped,
    params: dict,
    tokens: np.ndarray,
    seed: int,
    protocol: Protocol = Protocol(),
) -> dict[str, list[dict]]:
    """Segments [n, history + tail + 1] -> rows recent (nothing shown), lod1, lod2, …, full."""
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
        return masked_nll(model, params, shape, bank, tail, masks, protocol.tail)

    none, full, *each = in_batches(functools.partial(score, params), tokens).T
    rows = recovered_rows(none, full, dict(zip(ways, each, strict=True)), seed)
    entries = {"recent": 0, "full": protocol.history}
    entries |= {f"lod{level}": shape.counts()[level] * model.gist.slots for level in levels}
    untrained = {f"lod{level}" for level in levels if level > model.gist.trained}
    for row in rows:
        row |= {"entries": entries[row["what"]], "trained": row["what"] not in untrained}
    return {"gists": rows}


def whole_levels(model: Wrapped, protocol: Protocol) -> list[int]:
    """Levels whose nodes tile the history."""
    levels = range(1, model.gist.levels + 1)
    return [level for level in levels if protocol.history % model.gist.span(level) == 0]


SUITE = Suite(
    ("base", "gistnet"),
    length,
    measure,
    ("A history of 512 tokens, shown as nodes of one level alone; NLL of the next 128.",),
)
