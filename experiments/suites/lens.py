"""What a few blocks, shown as tokens besides the recent ones, recover; by who chooses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.suites import Suite
from experiments.suites.masks import masked_nll
from experiments.suites.rows import in_batches, recovered_rows
from mctx.focus.bank import BankShape, make_bank
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped, read_windows
from mctx.training.labels import gated_utility
from mctx.training.lens import bank_nodes, candidate_utility

GUESSES = ("recency", "random", "lens", "hindsight")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Attributes:
    history: tokens to choose blocks from. seen, scored: the recent tokens, which the base reads
      behind the chosen blocks; the lens sees the first, the NLL is that of the second.
    blocks: how many are chosen.
    """

    history: int = 1536
    seen: int = 256
    scored: int = 256
    blocks: tuple[int, ...] = (2, 4, 8, 16)


def length(model: Wrapped, protocol: Protocol = Protocol()) -> int | None:
    total = protocol.history + protocol.seen + protocol.scored
    return total if total <= model.base.window else None


def measure(
    model: Wrapped,
    params: dict,
    tokens: np.ndarray,
    seed: int,
    protocol: Protocol = Protocol(),
) -> dict[str, list[dict]]:
    """Segments [n, history + seen + scored] -> rows for each number of blocks.

    Rows: recent (no block), recency (the last blocks), random, lens, hindsight (gated-gradient
    labels of the scored tokens: a bound, it chooses on what it is scored on), full (all blocks).
    """
    shape = BankShape(model.gist, protocol.history // model.gist.block)

    @jax.jit
    def score(params, tokens, noise):
        history, tail = jnp.split(tokens, [protocol.history], axis=1)
        bank = make_bank(model, params, history)
        worth = guesses(model, shape, params, bank, tokens, noise, protocol)
        shown = [jnp.zeros((len(tokens), shape.blocks), bool)]
        shown += [jnp.ones_like(shown[0])]
        shown += [best(worth[name], m) for m in protocol.blocks for name in GUESSES]
        coarse = len(shape.node_level) - shape.blocks
        masks = jnp.pad(jnp.stack(shown), ((0, 0), (0, 0), (0, coarse)))  # [S, B, N]
        return masked_nll(model, params, shape, bank, tail, masks, protocol.scored)

    noise = np.random.default_rng(seed)

    def of(piece):
        return score(params, piece, noise.uniform(size=(len(piece), shape.blocks)))

    none, full, *each = in_batches(of, tokens).T
    by_count = np.reshape(each, (len(protocol.blocks), len(GUESSES), -1))
    return {
        f"lens-{m}": recovered_rows(
            none, full, dict(zip(GUESSES, nll, strict=True)), seed, blocks_chosen=m
        )
        for m, nll in zip(protocol.blocks, by_count, strict=True)
    }


def guesses(model, shape, params, bank, tokens, noise, protocol) -> dict[str, jax.Array]:
    """What each way of choosing thinks of every block of the history: [B, blocks]."""
    block, blocks = model.gist.block, shape.blocks
    history, recent = tokens[:, : protocol.history], tokens[:, protocol.history :]
    _, states = read_windows(model, params, recent[:, : protocol.seen])
    away = blocks + protocol.seen // block - 1 - jnp.arange(blocks)
    distance = jnp.broadcast_to(away, (len(history), blocks))
    query = states[:, :, -model.lens.query :]
    nodes = bank_nodes(model, shape, params, bank.states, bank.rows, query, distance, 0)
    logs = model.lensnet.apply({"params": params["lensnet"]}, query, nodes)
    counts = jnp.arange(recent.shape[1] - 1) >= recent.shape[1] - 1 - protocol.scored
    tokens_only = Rows(*(x[:, :, : protocol.history] for x in bank.rows))
    every = jnp.broadcast_to(jnp.arange(blocks), (len(history), blocks))
    none = jnp.zeros(0, jnp.int32)
    labels = gated_utility(
        model, params, tokens_only, bank.prefix, every, none, recent, counts.astype(jnp.float32)
    )
    recency = jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.float32), (len(history), blocks))
    chosen_by_lens = candidate_utility(shape, logs, blocks)[:, 0]
    return {"recency": recency, "random": noise, "lens": chosen_by_lens, "hindsight": labels}


def best(worth: jax.Array, count: int) -> jax.Array:
    """Which blocks are among the `count` best: [B, blocks] -> bool [B, blocks]."""
    chosen = jax.lax.top_k(worth, count)[1]
    return jnp.zeros(worth.shape, bool).at[jnp.arange(len(worth))[:, None], chosen].set(True)


SUITE = Suite(
    ("base", "gistnet", "lensnet"),
    length,
    measure,
    (
        "Blocks of 1,536 tokens shown as tokens, nothing else of them; the recent 512 tokens are "
        "read again behind them, and NLL is that of the last 256. The lens sees the first 256.",
        "Hindsight chooses by gated gradients of the very tokens that are scored: a bound.",
    ),
)
