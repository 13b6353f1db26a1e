"""A short history of which a few blocks are shown: who chooses them, and what is scored behind.

The protocol that the suites lens, labels and robustness share. A history of some blocks, and
recent tokens behind it: the first of them are seen by who chooses, the last are scored. The recent
tokens are always read behind the chosen blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods import choosing
from experiments.suites.masks import masked_nll
from experiments.suites.rows import in_batches
from mctx.focus.bank import Bank, BankShape, make_bank
from mctx.models.base import Rows
from mctx.models.lensnet import Nodes
from mctx.models.wrapped import Wrapped, read_windows
from mctx.opened import Opened
from mctx.training.labels import EPSILON, gated_utility
from mctx.training.lens import bank_nodes, candidate_utility

# What needs no learning, in the order of its rows.
UNLEARNED = ("recency", "bm25", "cosine", "attention", "query gradient")
FOLDS = ("odd", "even")  # tokens that cross-fitting chooses by


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

    @property
    def length(self) -> int:
        return self.history + self.seen + self.scored

    def fits(self, model: Wrapped) -> int | None:
        """Tokens of a segment; None where the base was not trained to read as many."""
        return self.length if self.length <= model.base.window else None

    def shape(self, model: Wrapped) -> BankShape:
        return BankShape(model.gist, self.history // model.gist.block)

    def parts(self, tokens):
        """[B, length] -> history, seen and the tail (seen and scored)."""
        tail = tokens[:, self.history :]
        return tokens[:, : self.history], tail[:, : self.seen], tail


STANDARD = Protocol()


# -- who chooses: worths of blocks, [B, blocks], higher is better ----------------------------


def lens_sees(
    model: Wrapped, params: dict, protocol: Protocol, bank: Bank, tokens: jax.Array
) -> tuple[jax.Array, Nodes]:
    """What the lens is given at the end of the seen tokens: its query, and nodes."""
    shape, block = protocol.shape(model), model.gist.block
    _, seen, _ = protocol.parts(tokens)
    states = read_windows(model, params, seen)[1]
    away = shape.blocks + protocol.seen // block - 1 - jnp.arange(shape.blocks)
    distance = jnp.broadcast_to(away, (len(tokens), shape.blocks))
    query = states[:, :, -model.lens.query :]
    return query, bank_nodes(model, shape, params, bank.states, bank.rows, query, distance, 0)


def lens_worth(model: Wrapped, params: dict, shape: BankShape, query, nodes: Nodes) -> jax.Array:
    """Utility of every block by the lens, in nats."""
    logs = model.lensnet.apply({"params": params["lensnet"]}, query, nodes)
    return candidate_utility(shape, logs, shape.blocks)[:, 0]


def gradient(
    model: Wrapped,
    params: dict,
    protocol: Protocol,
    bank: Bank,
    tail: jax.Array,
    counts: np.ndarray,
    epsilon: float = EPSILON,
) -> jax.Array:
    """Gated-gradient labels of tokens that count: tail [B, t], counts [t - 1]."""
    rows = Rows(*(x[:, :, : protocol.history] for x in bank.rows))
    blocks = protocol.history // model.gist.block
    every = jnp.broadcast_to(jnp.arange(blocks), (len(tail), blocks))
    none, weights = jnp.zeros(0, jnp.int32), jnp.asarray(counts, jnp.float32)
    return gated_utility(
        model, params, rows, bank.prefix, every, none, tail, weights, epsilon
    )


def scored_places(protocol: Protocol) -> np.ndarray:
    """Which of the tail's predicted tokens are scored: bool [t - 1]."""
    count = protocol.seen + protocol.scored - 1
    return np.arange(count) >= count - protocol.scored


def seen_by_base(
    model: Wrapped, params: dict, protocol: Protocol, bank: Bank, tokens: jax.Array
) -> dict[str, jax.Array]:
    """What the base alone tells of the blocks: its attention and the seen tokens' gradient
    [B, blocks], and mean states `means` [B, blocks + seen, D] of one middle layer."""
    _, seen, _ = protocol.parts(tokens)
    block, layers = model.gist.block, params["base"]["layers"]
    states = read_windows(model, params, seen)[1]  # [L + 1, B, seen, D]
    keys = bank.rows.k[:, :, : protocol.history]
    attention = functools.partial(choosing.attention_of, model, layers)
    last = states[:, :, -choosing.QUERY_TOKENS :]
    middle = model.base.n_layers // 2
    both = jnp.concatenate([bank.states[middle], states[middle]], axis=1)
    return {
        "attention": jax.vmap(attention, in_axes=(1, 1))(last, keys),
        "query gradient": gradient(
            model, params, protocol, bank, seen, np.ones(protocol.seen - 1)
        ),
        "means": both.reshape(len(tokens), -1, block, both.shape[-1]).mean(axis=2),
    }


def hindsight(
    model: Wrapped, params: dict, protocol: Protocol, bank: Bank, tokens: jax.Array
) -> dict[str, jax.Array]:
    """Labels of the scored tokens: of the odd ones, of the even ones, and of all."""
    _, _, tail = protocol.parts(tokens)
    scored = scored_places(protocol)
    odd = np.arange(len(scored)) % 2 == 1
    folds = {
        name: gradient(model, params, protocol, bank, tail, scored & which)
        for name, which in zip(FOLDS, (odd, ~odd), strict=True)
    }
    return folds | {"hindsight": folds["odd"] + folds["even"]}  # gradients of sums are sums


def worths(opened: Opened, protocol: Protocol, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What everybody thinks of every block: [n, blocks] by name, and `means`."""
    return in_batches(functools.partial(_worths, opened.model, protocol, opened.params), tokens)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _worths(model, protocol, params, tokens):
    bank = make_bank(model, params, tokens[:, : protocol.history])
    found = hindsight(model, params, protocol, bank, tokens)
    found |= seen_by_base(model, params, protocol, bank, tokens)
    sees = lens_sees(model, params, protocol, bank, tokens)
    return found | {"lens": lens_worth(model, params, protocol.shape(model), *sees)}


def unlearned(
    model: Wrapped, protocol: Protocol, tokens: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Ranks in (0, 1] by what needs no learning, made as the methods of that name make them
    (`experiments.methods.choosing`): [n, blocks] by name; `found`: of `worths`."""
    block, blocks = model.gist.block, protocol.history // model.gist.block
    history, seen, _ = protocol.parts(tokens)

    def each(worth, follow=True):
        rows = [choosing.followed(row)[:blocks] if follow else row for row in worth]
        return np.stack([choosing.ranked(row) for row in rows])

    def words(one, query):
        documents = one.reshape(blocks, block)
        return choosing.bm25_of(documents, query[-choosing.WORDS :], model.base.vocab_size)

    made = {
        "recency": each(np.broadcast_to(np.arange(blocks), (len(tokens), blocks)), False),
        "bm25": each(list(map(words, history, seen))),
        "cosine": each(map(choosing.cosine_of, found["means"])),
        "attention": each(found["attention"]),
        "query gradient": each(found["query gradient"], False),
    }
    return {name: made[name] for name in UNLEARNED}


# -- what is shown, and scored ---------------------------------------------------------------


def best(worth: np.ndarray, count: int) -> np.ndarray:
    """Which blocks are among the `count` best: [n, blocks] -> bool [n, blocks]."""
    chosen = np.argsort(-worth, axis=1, kind="stable")[:, :count]
    shown = np.zeros(worth.shape, bool)
    np.put_along_axis(shown, chosen, True, axis=1)
    return shown


def nodes_shown(shape: BankShape, chosen: np.ndarray, gists: bool) -> np.ndarray:
    """Chosen blocks [..., blocks] as tokens, the others as gists or silent: [..., N] of a bank."""
    rest = ~chosen & gists
    coarser = len(shape.node_level) - 2 * shape.blocks
    none = np.zeros((*chosen.shape[:-1], coarser), bool)
    return np.concatenate([chosen, rest, none], axis=-1)


def nll_behind(
    opened: Opened,
    protocol: Protocol,
    tokens: np.ndarray,
    shown: np.ndarray,
    most: int | None = None,
) -> np.ndarray:
    """NLL of the scored tokens behind what is shown, [n, S, scored].

    Args:
      tokens: [n, length]. shown: bool [n, S, N].
      most: blocks that are shown as tokens at most, where these are few.
    """
    gist, blocks = opened.model.gist, protocol.shape(opened.model).blocks
    capacity = None if most is None else most * gist.block + (blocks - most) * gist.entries[0]
    of = functools.partial(_nll_behind, opened.model, protocol, capacity, opened.params)
    return in_batches(of, tokens, shown)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nll_behind(model, protocol, capacity, params, tokens, shown):
    history, _, tail = protocol.parts(tokens)
    bank, shape = make_bank(model, params, history), protocol.shape(model)
    masks = shown.swapaxes(0, 1)
    return masked_nll(model, params, shape, bank, tail, masks, protocol.scored, capacity)


def nll_of_all(opened: Opened, protocol: Protocol, tokens: np.ndarray) -> np.ndarray:
    """Mean NLL of the scored tokens behind all blocks: [n]."""
    shape = protocol.shape(opened.model)
    every = nodes_shown(shape, np.ones((len(tokens), 1, shape.blocks), bool), gists=False)
    return nll_behind(opened, protocol, tokens, every).mean(axis=(1, 2))
