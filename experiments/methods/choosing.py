"""What blocks are worth by methods that need no training: [blocks] numbers, higher is better."""

from __future__ import annotations

import functools
import logging
import zlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.methods.standing import Asked
from mctx.errors import UserError
from mctx.models.finder import attended, log_shares, queries_of
from mctx.models.wrapped import Wrapped

if TYPE_CHECKING:
    from experiments.methods.scorer import Scorer

WORDS = 64  # tokens of the query of BM25
QUERY_BLOCKS = 2  # whose mean state is the query of the cosine
QUERY_TOKENS = 64  # whose attention scores blocks
AT_ONCE = 64  # blocks whose keys are looked at by one call


def ranked(worth: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1], the best 1 and of equals the later: so that a method's scale decides
    nothing and its budget is always filled."""
    order = np.argsort(worth, kind="stable")
    ranks = np.empty(len(worth))
    ranks[order] = np.arange(1, len(worth) + 1) / len(worth)
    return ranks


def followed(worth: np.ndarray) -> np.ndarray:
    """Each block's worth and that of the block before it.

    A block that is like the last tokens repeats what they say; what it was followed by is what
    may follow now (as RETRO shows its neighbours with their continuations, Borgeaud et al. 2022).
    """
    return worth + np.concatenate([np.zeros(1), worth])[:-1]


def random(scorer: Scorer, asked: Asked) -> np.ndarray:
    """By chance, the same for one seed and one history."""
    last = scorer.history.tree.tokens(scorer.length - scorer.model.gist.block, scorer.length)
    drawn = np.random.default_rng([scorer.protocol.seed, scorer.blocks, zlib.crc32(last)])
    return ranked(drawn.uniform(size=scorer.blocks))


def handed(scorer: Scorer, asked: Asked) -> np.ndarray:
    """The blocks that hold the support, and nothing else but sinks and recent ones."""
    block = scorer.model.gist.block
    worth = np.full(scorer.blocks, -1.0)
    for start, stop in asked.support:
        worth[start // block : -(-stop // block)] = 1.0
    return worth


def bm25(scorer: Scorer, asked: Asked) -> np.ndarray:
    """BM25 over token ids, the last `WORDS` the query: see `bm25_of`."""
    block, old = scorer.model.gist.block, _old(scorer)
    documents = scorer.history.tree.tokens(0, old * block).reshape(old, block)
    query = scorer.history.tree.tokens(max(scorer.length - WORDS, 0), scorer.length)
    worth = np.zeros(scorer.blocks)
    if old:
        worth[:old] = bm25_of(documents, query, scorer.model.base.vocab_size)
    return ranked(followed(worth))


def bm25_of(documents: np.ndarray, query: np.ndarray, vocabulary: int) -> np.ndarray:
    """BM25 (Lucene's form, by the library bm25s) of token ids: documents [n, K_1], and a query
    [q], of which the distinct tokens count: [n]."""
    index = _library().BM25(method="lucene")
    words = {str(i): i for i in range(vocabulary)}
    tokenized = _library().tokenization.Tokenized(documents.tolist(), words)
    index.index(tokenized, show_progress=False)
    return index.get_scores(np.unique(query).tolist())


def cosine(scorer: Scorer, asked: Asked) -> np.ndarray:
    """Cosine of the mean state of each block's tokens with that of the last blocks, both less the
    mean state of the history: what all states share would make all blocks alike."""
    return ranked(followed(cosine_of(scorer.history.means()[: scorer.blocks])))


def cosine_of(means: np.ndarray) -> np.ndarray:
    """Cosine of each block's mean state [n, D] with that of the last blocks: [n]."""
    centred = means.astype(np.float64) - means.mean(axis=0, dtype=np.float64)
    query = centred[-QUERY_BLOCKS:].mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(query)
    return centred @ query / np.maximum(lengths, 1e-30)


def attention(scorer: Scorer, asked: Asked) -> np.ndarray:
    """The share of the last tokens' attention that each block would get, were all blocks read
    and positions nothing: keys as they are in the ingest rows, unrotated, and queries likewise
    (in the manner of InfLLM, Xiao et al. 2024; every key of a block stands for it)."""
    worth, pieces = np.zeros(scorer.blocks), _pieces(_old(scorer))
    states = scorer.history.cache.states(scorer.blocks, QUERY_TOKENS)
    static, params = (scorer.model,), scorer.params["base"]["layers"]
    query = scorer.run(queries, static, params, states)
    total = np.full(query.shape[:4], -np.inf, np.float32)
    found = []
    for blocks, shown in pieces:
        keys = scorer.history.cache.get(blocks).k
        total, each = scorer.run(_attended, (), query, keys, shown, total)
        found.append(each)
    for (blocks, shown), each in zip(pieces, found, strict=True):
        worth[blocks[shown]] = np.asarray(_shares(each, total))[shown]
    return ranked(followed(worth))


def attention_of(model: Wrapped, layers: dict, states: jax.Array, keys: jax.Array) -> jax.Array:
    """As `attention`, of blocks that are all at hand: states [L + 1, Q, D] of the last tokens,
    keys [L, n·K_1, K, h], unrotated -> [n]."""
    every = np.ones(keys.shape[1] // model.gist.block, bool)
    each = attended(queries(model, layers, states), keys.swapaxes(1, 2), every)
    return _shares(each, jax.nn.logsumexp(each, axis=-1))


def _pieces(count):
    """Blocks [AT_ONCE] and which of them are there, so that every call has one shape."""
    return [
        (np.minimum(at + np.arange(AT_ONCE), count - 1), at + np.arange(AT_ONCE) < count)
        for at in range(0, count, AT_ONCE)
    ]


@functools.partial(jax.jit, static_argnums=0)
def queries(model: Wrapped, layers: dict, states: jax.Array) -> jax.Array:
    """The base's queries, before rotation, of tokens with these states [L + 1, Q, D]: in every
    layer [L, K, Q, G, h]."""
    return jax.vmap(functools.partial(queries_of, model.base))(layers, states[:-1]).swapaxes(1, 2)


@jax.jit
def _attended(query, keys, shown, total):
    """Of blocks [n, L, K_1, K, h]: log of the summed exp of their logits [L, K, Q, G, n], and the
    total [L, K, Q, G] so far with theirs."""
    keys = keys.transpose(1, 3, 0, 2, 4)  # [L, K, n, K_1, h]
    each = attended(query, keys.reshape(*keys.shape[:2], -1, keys.shape[-1]), shown)
    return jnp.logaddexp(total, jax.nn.logsumexp(each, axis=-1)), each


@jax.jit
def _shares(each, total):
    """The largest share of a query's attention that each block gets, over layers, queries and
    heads: [n]. (Means are those of heads that look nowhere in particular.)"""
    return jnp.exp(log_shares(each, total)).max(axis=(0, 1, 2))


def _old(scorer) -> int:
    """Blocks before the recent ones: those there is a choice of."""
    return max(scorer.blocks - scorer.protocol.recent, 0)


def _library():
    try:
        import bm25s
    except ImportError as error:
        raise UserError(
            "bm25s is not installed: pip install -r requirements-eval.txt, or leave out bm25."
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s
