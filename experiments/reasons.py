"""Why the lens brought old text back: the words of the present that pulled it.

Every few refocuses, of the old blocks that have come to be shown as tokens since, the one that the
lens thinks most of; and what each of the query's tokens has to do with it: the gradient of the
block's predicted utility with respect to that token's states (all layers that the lens looks at),
times what sets them apart from the mean of the query. It goes through the lens's cross-attention
and through what its finders find.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sessions import far_detail
from mctx.models import finder
from mctx.models.finder import nothing_found
from mctx.models.lensnet import Nodes, seen, utility
from mctx.models.wrapped import Wrapped
from mctx.runtime import Session

EVERY = 8  # refocuses between two that are asked for reasons
AT_ONCE = 8  # blocks that are asked about together
LATE = 32  # blocks: what is younger was not brought back


class Reasons:
    """Writes a record of every few refocuses; for `Session(on_refocus=…)`."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path, self._before, self._back = path, np.zeros(0, int), np.zeros(0, int)

    def refocused(self, session: Session) -> None:
        if "lensnet" not in session.params or session.worths:
            return
        detail = far_detail(session)
        fresh = np.setdiff1d(detail[detail < session.blocks - LATE], self._before)
        self._before = detail
        self._back = np.intersect1d(np.union1d(self._back, fresh), detail)  # and still shown
        if session.refocuses % EVERY == 0 and len(self._back):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(reason(session, self._back[:AT_ONCE])) + "\n")
            self._back = self._back[:0]


def reason(session: Session, blocks: np.ndarray) -> dict:
    """Of some blocks the one that the lens thinks most of: {"position", "block", "of": tokens of a
    block, "utility": nats, "text", "words": of the query, "pull": one number a word}."""
    worth, pull = pulls(session, blocks)
    best, block = int(np.argmax(worth)), session.model.gist.block
    at, position = int(blocks[best]), session.blocks * block
    decode = session.opened.tokenizer.decode
    words = session.tree.tokens(max(position - session.model.lens.query, 0), position)
    return {
        "position": position,
        "block": at,
        "of": block,
        "utility": float(worth[best]),
        "text": decode(session.tree.tokens(at * block, (at + 1) * block)),
        "words": [decode([int(word)]) for word in words],
        "pull": pull[best][-len(words) :].tolist(),
    }


def pulls(session: Session, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Utility of at most `AT_ONCE` blocks, [n] nats, and what every token of the query adds to it,
    [n, Q]."""
    model, count = session.model, len(blocks)
    some = np.pad(blocks, (0, AT_ONCE - count), mode="edge")
    gists = seen(session.tree.gather(1, some)).astype(np.float32)
    distance = session.blocks - 1 - some
    found = _pulls(
        model, session.params, session.query, gists, distance, *_looked_over(session), some
    )
    worth, pull = (np.asarray(x)[:count] for x in found)
    return worth, pull


def _looked_over(session):
    """Keys that the finders look over, [P, T, h], and which blocks are live; a power of two of
    them, so that few lengths compile anything. Of a lens without finders, of nothing."""
    model, blocks = session.model, session.blocks
    if not session.finding:
        return None, None
    room = 1 << (blocks - 1).bit_length()
    kept = finder.kept(model.lens, np.moveaxis(session.cache.keys(np.arange(blocks)), 1, 0))
    keys = np.moveaxis(kept, 0, 1).reshape(kept.shape[1], -1, kept.shape[-1])
    keys = np.pad(keys, ((0, 0), (0, (room - blocks) * model.gist.block), (0, 0)))
    live = np.arange(room) < blocks - session.focus.recent
    for start, stop in session.dead_runs:
        live[start:stop] = False
    return keys, live


@functools.partial(jax.jit, static_argnums=0)
def _pulls(model: Wrapped, params: dict, query, gists, distance, keys, live, blocks):
    ones = jnp.ones((1, len(blocks)), jnp.int32)

    def worth(query):  # [L + 1, Q, D] -> [n]
        if keys is None:
            found = jnp.asarray(nothing_found(model, ones.shape))
        else:
            found = finder.found_among(model, params["base"], query, keys, live)[blocks][None]
        nodes = Nodes(gists[None], ones, distance[None], ones > 0, found)
        lens = {"params": params["lensnet"]}
        logs = model.lensnet.apply(lens, query[:, None], nodes, jnp.zeros((1, 1), jnp.int32))
        return utility(logs[0, 0])

    slopes = jax.jacrev(worth)(query)  # [n, L + 1, Q, D]
    apart = query - query.mean(axis=1, keepdims=True)
    return worth(query), jnp.einsum("nlqd,lqd->nq", slopes, apart)
