"""Phase `mof`: the router and the merger of the Mixture of Focus.

Each head's layout comes from the real allocator under its own lens; the base reads the same
continuation behind every one of them. The merger learns convex weights on the NLL of what it
merges; the router learns, from the query and the lens's statistics alone, which heads the NLL
will favour. They are trained together with the mix, because views trained apart collapse when
mixed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mctx.focus.bank import BankShape, context_of, focus_for, make_bank, shown_nodes
from mctx.focus.layout import FocusConfig, head_statistics, validate
from mctx.models import merger as merging
from mctx.models.base import token_nll
from mctx.models.lensnet import utility
from mctx.models.router import route
from mctx.models.wrapped import Wrapped, init_part, read_behind
from mctx.sharding import by_rows, over_heads, whole
from mctx.training.lens import bank_nodes
from mctx.training.loop import Phase
from mctx.training.shown import descend
from mctx.training.sources import Sources, scored, wrapped_from


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_mof.py."""
    frozen, trained = sources.load(("base", "gistnet", "lensnet"))
    model = wrapped_from(config, trained)
    shape = BankShape(model.gist, config.history // model.gist.block)
    focus = focus_for(model.gist, **config.focus)
    validate(focus, shape.blocks)
    length = config.history + config.tail + 1

    def batch(step, rows):
        tokens = sources.segments(length, config.batch_size, config.train.seed, step, rows)
        return {"tokens": tokens}

    def loss(params, frozen, batch, key):
        views = read_views(model, shape, focus, frozen, batch["tokens"])
        nll, worth = merged_nll(model, frozen, params, views, config.top)
        each = view_nll(frozen, views)  # [H, B, T]
        # How much better each head is than the mean of all, in nats of the whole tail.
        favour = jax.nn.softmax(-each.sum(axis=-1).T / config.temperature, axis=-1)
        guess = jax.nn.log_softmax(worth / config.temperature, axis=-1)
        routed = -jnp.mean(jnp.sum(favour * guess, axis=-1))
        mean = nll.mean()
        return mean + config.routing * routed, {
            "nll": mean,
            "routing": routed,
            "best_head": each.mean(axis=(1, 2)).min(),
            "average": averaged_nll(frozen, views, config.top).mean(),
        }

    tokens = sources.held_out(length, config.eval_segments, 0, 0, slice(None))

    @jax.jit
    def score(params, frozen, tokens):
        return whole(loss(params, frozen, {"tokens": by_rows(tokens)}, None)[1])

    def evaluate(params, frozen):
        return scored(
            sources.domains, len(tokens), lambda rows: score(params, frozen, tokens[rows])
        )

    return Phase(
        name="mof",
        item="mof",
        init=lambda key: init_part(model, "mof", key),
        loss=loss,
        batch=batch,
        batch_size=config.batch_size,
        frozen=frozen,
        config={**trained, "mof": {"top": config.top}},
        evaluate=evaluate,
    )


class Views(NamedTuple):
    """One continuation read behind every head's working context; nothing here has a gradient.

    Attributes:
      hidden: [H, B, T, D], of the tokens that are read. targets: [B, T].
      query: [L + 1, B, Q, D]. stats: [B, H, STATISTICS].
    """

    hidden: jax.Array
    targets: jax.Array
    query: jax.Array
    stats: jax.Array


def read_views(
    model: Wrapped, shape: BankShape, focus: FocusConfig, frozen: dict, tokens: jax.Array
) -> Views:
    """Lens, allocator and base for all heads: tokens [B, history + T + 1] -> Views."""
    history, tail = jnp.split(tokens, [shape.blocks * model.gist.block], axis=1)
    bank = make_bank(model, frozen, history)
    query = bank.states[:, :, -model.lens.query :]
    b, heads = history.shape[0], model.lens.heads
    distance = jnp.broadcast_to(jnp.arange(shape.blocks)[::-1], (b, shape.blocks))
    nodes = bank_nodes(
        model, shape, frozen, bank.states, bank.rows, query, distance, focus.recent
    )
    scores = utility(model.lensnet.apply({"params": frozen["lensnet"]}, query, nodes))
    scores = jnp.where(nodes.valid, scores[:, :heads].swapaxes(0, 1), 0.0)  # [H, B, N]
    first = shape.first_node

    def view(scores):  # [B, N] of one head
        layout = descend(shape, focus, scores[:, first[1] : first[1] + shape.blocks])
        behind = context_of(shape, bank, shown_nodes(shape, layout))
        hidden = read_behind(model, frozen, tail[:, :-1], *behind).hidden
        # As a session's lens sees a layout (`mctx.runtime.focusing`): its nodes, each on its own.
        # A block is what its gist is; rows that are none are not counted.
        where = jnp.asarray(first)[jnp.maximum(layout.level, 1)] + jnp.maximum(layout.index, 0)
        return hidden, head_statistics(layout, jnp.take_along_axis(scores, where, axis=1))

    hidden, stats = over_heads(view, scores)  # [H, B, T, D], [H, B, STATISTICS]
    return jax.lax.stop_gradient(Views(hidden, tail[:, 1:], query, stats.swapaxes(0, 1)))


def view_nll(frozen: dict, views: Views) -> jax.Array:
    """[H, B, T], every head on its own."""
    return jax.vmap(lambda hidden: token_nll(frozen["base"], hidden, views.targets))(views.hidden)


def merged_nll(
    model: Wrapped, frozen: dict, params: dict, views: Views, top: int
) -> tuple[jax.Array, jax.Array]:
    """NLL [B, T] of the router's best `top` heads merged, and the router's worth [B, H]."""
    worth = model.router.apply({"params": params["router"]}, views.query, views.stats)
    routing = route(jax.lax.stop_gradient(worth), top)
    hidden = pick(views.hidden, routing.heads)
    weights = model.merger.apply({"params": params["merger"]}, hidden, routing.gate)
    return token_nll(frozen["base"], merging.merge(hidden, weights), views.targets), worth


def averaged_nll(frozen: dict, views: Views, top: int) -> jax.Array:
    """The merger's untrained control: NLL [B, T] of the first `top` heads, equally weighted."""
    hidden = views.hidden[:top]
    return token_nll(
        frozen["base"], merging.merge(hidden, merging.average(hidden)), views.targets
    )


def pick(hidden: jax.Array, heads: jax.Array) -> jax.Array:
    """[H, B, T, D] and chosen heads [B, k] -> [k, B, T, D]."""
    return jnp.take_along_axis(hidden, heads.T[:, :, None, None], axis=0)
