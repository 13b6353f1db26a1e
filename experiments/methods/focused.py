"""Methods that show a layout through a session: the lens, heads, gists, and chosen blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.methods.standing import Asked, Protocol, Standing
from mctx.focus import layout
from mctx.focus.layout import FocusConfig, Layout, coarsest, minimum_budget
from mctx.models.base import Rows
from mctx.models.wrapped import Wrapped
from mctx.runtime import SessionConfig
from mctx.runtime.assembly import gist_rows_at_once
from mctx.runtime.config import focus_configs

if TYPE_CHECKING:
    from experiments.methods.scorer import Scorer

TOP = 2  # heads that the base runs on in the methods with several
Worth = Callable[["Scorer", Asked], np.ndarray | None]  # -> [blocks] nats; None: the lens's


def nothing(scorer: Scorer, asked: Asked) -> None:
    """The lens decides."""


def tokens_config(model: Wrapped, protocol: Protocol) -> SessionConfig:
    """Blocks chosen as tokens; what is not chosen is shown as the protocol says."""
    return SessionConfig(
        budget=protocol.budget,
        sink=protocol.sink,
        recent=protocol.recent,
        show=protocol.silence(model),
        max_edits=2**30,
    )


def gists_config(model: Wrapped, protocol: Protocol) -> SessionConfig:
    """Blocks chosen as tokens; every node of a trained level that is not opened is shown.

    Without sinks: every reading has its prefix, and a first block shown as tokens would need gists
    of every level beside it, a third of 512 entries.
    """
    return dataclasses.replace(tokens_config(model, protocol), show=(), sink=0)


def first_config(model: Wrapped, protocol: Protocol) -> SessionConfig:
    """As `gists_config`, with the first blocks as tokens: what that costs."""
    return dataclasses.replace(gists_config(model, protocol), sink=protocol.sink)


def heads_config(model: Wrapped, protocol: Protocol) -> SessionConfig:
    """Heads of their own share of the budget, routed and merged by what was trained for it."""
    heads = dict(heads=model.lens.heads, top=TOP, router="learned", merger="learned")
    return dataclasses.replace(tokens_config(model, protocol), **heads)


def staged_config(model: Wrapped, protocol: Protocol) -> SessionConfig:
    return dataclasses.replace(heads_config(model, protocol), staging=4 * protocol.budget)


Configure = Callable[[Wrapped, Protocol], SessionConfig]


def shown(configure: Configure, worth: Worth = nothing):
    """A method: what a session of these settings shows under these worths of blocks."""

    def stand(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
        config = roomy(scorer, configure(scorer.model, scorer.protocol))
        if config is not None:
            yield scorer.focused(config, worth(scorer, asked))

    return stand


def roomy(scorer: Scorer, config: SessionConfig) -> SessionConfig | None:
    """The settings with as many nodes as the scorer's histories need: the coarsest cover, and the
    siblings of every block that the budget holds. None where the cover alone of this history, or
    the number of heads, is past what there is.
    """
    if config.top > scorer.model.lens.heads:
        return None
    focus, wide = focus_configs(scorer.model, config)
    if any(f and int(minimum_budget(f, scorer.blocks)) > f.budget for f in (focus, wide)):
        return None
    most = scorer.most_blocks
    return dataclasses.replace(
        config,
        capacity=max(config.capacity, nodes_for(focus, most)),
        staging_capacity=max(config.staging_capacity, nodes_for(wide, most) if wide else 0),
    )


def nodes_for(focus: FocusConfig, blocks: int) -> int:
    """Of a layout of so many blocks whose budget goes to single ones, far apart; a power of two,
    so that few shapes serve many lengths."""
    cover = int(coarsest(focus, blocks)[2].sum()) + focus.headroom
    siblings = int(np.sum(focus.children[2:-1] - 1))
    opened = min(focus.budget // focus.costs[0], blocks)
    return 1 << (cover + siblings * opened - 1).bit_length()


# -- uniform level of detail ----------------------------------------------------------------


def uniform(source: Callable[[Scorer], Callable] | None = None):
    """A method: all of the history as gists of one level, the finest that fits, and the recent
    window grown as far as the rest of the budget goes.

    Args:
      source: makes the `gist_rows` of the scorer's session; None for GistNet's own.
    """

    def stand(scorer: Scorer, asked: Asked) -> Iterator[Standing]:
        config = gists_config(scorer.model, scorer.protocol)
        levels = scorer.model.gist.levels if source else scorer.model.gist.trained
        one = one_level(scorer, config, levels)
        if one is not None:
            yield scorer.placed(config, one, source and source(scorer))

    return stand


def one_level(scorer: Scorer, config: SessionConfig, levels: int) -> Layout | None:
    """The layout, [1, n] on the host; None where not one of the first `levels` fits."""
    focus, _ = focus_configs(scorer.model, config)
    blocks = scorer.blocks
    for level in range(1, levels + 1):
        cut = dict(fanouts=focus.fanouts[:level], costs=focus.costs[: level + 1])
        one = dataclasses.replace(focus, **cut, show=(True,) * (level + 1))
        if int(minimum_budget(one, blocks)) > focus.budget:
            continue
        most = min(focus.budget // focus.costs[0], blocks)
        fits = [
            recent
            for recent in range(focus.recent, most + 1)
            if int(minimum_budget(dataclasses.replace(one, recent=recent), blocks)) <= focus.budget
        ]
        one = dataclasses.replace(one, recent=max(fits, default=focus.recent))
        nodes = 1 << int(coarsest(one, blocks)[2].sum()).bit_length()
        one = dataclasses.replace(one, capacity=max(nodes, config.capacity))
        made = jax.device_get(layout.initial(one, np.int32(blocks)))
        return jax.tree.map(lambda x: x[None], made)
    return None


def mean_rows(scorer: Scorer) -> Callable[[int, np.ndarray], Rows]:
    """`gist_rows` without GistNet: slot s of a node is the mean of the keys and the values of
    that part of its tokens."""
    gist, spans = scorer.model.gist, focus_spans(scorer.model)

    def rows(level: int, indices: np.ndarray) -> Rows:
        span, slots = spans[level], gist.entries[level - 1]
        found = [_mean(scorer, np.arange(i * span, (i + 1) * span), slots) for i in indices]
        k, v = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
        short = gist_rows_at_once(gist) - len(indices) * slots
        return Rows(*(np.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) for x in (k, v)))

    return rows


def focus_spans(model: Wrapped) -> np.ndarray:
    """Blocks that a node covers, by level from LOD0."""
    return np.cumprod((1, 1, *model.gist.fanouts[1:]))


def _mean(scorer, blocks, slots):
    """Of consecutive blocks: keys and values [L, slots, K, h]."""
    rows = scorer.history.cache.get(blocks)  # [n, L, K_1, K, h]

    def pool(x):
        n, layers, block, *rest = x.shape
        parts = x.swapaxes(0, 1).reshape(layers, slots, n * block // slots, *rest)
        return parts.mean(axis=2)

    return pool(rows.k), pool(rows.v)
