"""Phase `lens`: LensNet learns to foresee which blocks the next tokens will need.

Labels are gated gradients of the true continuation; the lens sees gists, distances and the window
states of the last tokens before it. Histories are a near stretch and stretches from far back in
the same package, at their true distances, so that the far past is in the training data.

The loss is Poisson's for the gain and the harm of every node: it is least where the predicted
utility equals the expected one (so it is calibrated in nats) and it ranks as a listwise
cross-entropy does, because its gradient for each node is prediction minus label.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mctx.focus.bank import BankShape, complete_gists, read_history
from mctx.models.lensnet import Nodes, utility
from mctx.models.wrapped import Wrapped, init_part
from mctx.sharding import whole
from mctx.training.labels import label_history
from mctx.training.loop import Phase
from mctx.training.shown import node_utility
from mctx.training.sources import Sources, scored, wrapped_from


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_lens.py."""
    frozen, trained = sources.load(("base", "gistnet"))
    model = wrapped_from(config, trained)
    block = model.gist.block
    shape = BankShape(model.gist, (config.near + config.groups * config.far) // block)
    candidates = shape.blocks - config.recent
    size = dict(
        near=config.near,
        far=config.far,
        groups=config.groups,
        tail=config.tail + 1,
        block=block,
    )

    def examples(step, rows, source=sources.histories, batch=config.batch_size):
        tokens, distance = source(
            **size, reach=config.reach, batch=batch, seed=config.train.seed, step=step, rows=rows
        )
        return {"tokens": tokens, "distance": distance}

    def loss(params, frozen, batch, key):
        labels, logs, valid = _labelled(model, shape, config, params, frozen, batch, key)
        scores = candidate_utility(shape, logs, candidates)
        goal = _goals(shape, labels, scores, config.novel)  # [B, heads + 1, N]
        value = poisson(logs, goal, valid)
        return value, {
            "poisson": value,
            "captured": captured(scores[:, 0], labels, config.novel),
            "overlap": _overlap(scores, config.novel),
        }

    held = examples(0, slice(None), sources.held_histories, config.eval_segments)

    @jax.jit
    def score(params, frozen, batch):
        labels, logs, _ = _labelled(
            model, shape, config, params, frozen, batch, jax.random.key(0)
        )
        guesses = {
            "lens": candidate_utility(shape, logs, candidates)[:, 0],
            "recency": jnp.broadcast_to(jnp.arange(candidates, dtype=jnp.float32), labels.shape),
            "random": jax.random.uniform(jax.random.key(1), labels.shape),
        }
        return whole({k: captured(v, labels, config.novel) for k, v in guesses.items()})

    def evaluate(params, frozen):
        def of(rows):
            found = score(params, frozen, {k: v[rows] for k, v in held.items()})
            return {f"captured_{name}": value for name, value in found.items()}

        return scored(sources.domains, config.eval_segments, of)

    return Phase(
        name="lens",
        item="lensnet",
        init=lambda key: init_part(model, "lensnet", key),
        loss=loss,
        batch=examples,
        batch_size=config.batch_size,
        frozen=frozen,
        config={**trained, "lens": model.lens.to_dict()},
        evaluate=evaluate,
    )


def _labelled(model: Wrapped, shape, config, params, frozen, batch, key):
    """Labels [B, candidates] of the blocks before the recent ones, lens outputs
    [B, heads + 1, N, 2] and validity [B, N] over a bank's nodes."""
    length = shape.blocks * model.gist.block
    history, tail = jnp.split(batch["tokens"], [length], axis=1)
    rows, states, prefix = read_history(model, frozen, history)
    labels = label_history(model, frozen, rows, prefix, tail, config.recent, config.sets, key)
    nodes = bank_nodes(model, shape, frozen, states, batch["distance"], config.recent)
    query = states[:, :, -model.lens.query :]
    logs = model.lensnet.apply({"params": params}, query, nodes)
    return jax.lax.stop_gradient(labels), logs, nodes.valid


def bank_nodes(
    model: Wrapped, shape: BankShape, params, states, distance, recent: int
) -> Nodes:
    """Every node of a bank; an LOD0 node is described by its LOD1 twin.

    Valid are those that can be expanded: gists that cover none of the recent blocks.

    Args:
      states: [L + 1, B, T, D]. distance: [B, blocks] between each block and the history's end.
      recent: blocks at the end that are always shown as tokens.
    """
    gists = complete_gists(model, params, jax.lax.stop_gradient(states))
    width = model.gist.slots * model.gist.width
    flat = [g.reshape(*g.shape[:2], width) for g in [gists[0], *gists]]
    last = shape.node_block + shape.spans[shape.node_level] - 1
    expandable = (shape.node_level > 0) & (last < shape.blocks - recent)
    b = states.shape[1]
    return Nodes(
        gists=jax.lax.stop_gradient(jnp.concatenate(flat, axis=1)),
        level=jnp.broadcast_to(np.maximum(shape.node_level, 1), (b, len(last))),
        distance=distance[:, last],
        valid=jnp.broadcast_to(expandable, (b, len(last))),
    )


def candidate_utility(shape: BankShape, logs: jax.Array, candidates: int) -> jax.Array:
    """Signed utility of the first blocks' gists: [B, heads + 1, N, 2] -> [B, heads + 1, blocks]."""
    first = shape.first_node[1]
    return utility(logs[:, :, first : first + candidates])


def poisson(logs: jax.Array, goal: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the batch of the summed Poisson losses of gain and harm.

    Args:
      logs: [B, H, N, 2] predicted logs of gain and harm. goal: [B, H, N] signed labels in nats.
      valid: [B, N].
    """
    wanted = jnp.stack([jnp.maximum(goal, 0.0), jnp.maximum(-goal, 0.0)], axis=-1)
    # Beyond the bound of `utility` a straight line: what was predicted too high must come back.
    bounded = jnp.minimum(logs, 6.0)
    each = jnp.exp(bounded) * (1.0 + logs - bounded) - wanted * logs
    return jnp.mean(jnp.sum(jnp.where(valid[:, None, :, None], each, 0.0), axis=(2, 3)))


def _goals(shape: BankShape, labels: jax.Array, scores: jax.Array, best: int) -> jax.Array:
    """What each head is to predict for every node: the best that is still new to it beneath.

    Head h is rewarded only for blocks outside the best `best` of every head before it; the
    staging head, the last, for all (design: Multi-head focus, diversity).

    Args:
      labels: [B, candidates]. scores: [B, heads + 1, candidates].

    Returns:
      [B, heads + 1, N], 0 for the recent blocks.
    """
    b, heads, candidates = scores.shape
    row = jnp.arange(b)[:, None]
    fresh = [jnp.ones_like(labels)]
    for head in range(heads - 2):
        open_to = jnp.where(fresh[-1] > 0, scores[:, head], -jnp.inf)
        fresh.append(fresh[-1].at[row, jax.lax.top_k(open_to, best)[1]].set(0.0))
    fresh = jnp.stack([*fresh, jnp.ones_like(labels)], axis=1)
    wanted = jnp.pad(labels[:, None] * fresh, ((0, 0), (0, 0), (0, shape.blocks - candidates)))
    return node_utility(shape, wanted.reshape(b * heads, -1)).reshape(b, heads, -1)


def _overlap(scores, best):
    """Share of the second head's best blocks that the first head also has among its best."""
    if scores.shape[1] < 3:
        return jnp.zeros(())
    first, second = jax.lax.top_k(scores[:, 0], best)[1], jax.lax.top_k(scores[:, 1], best)[1]
    return jnp.mean((first[:, :, None] == second[:, None, :]).any(axis=1))


def captured(guess: jax.Array, labels: jax.Array, best: int) -> jax.Array:
    """Label of the `best` guessed blocks over that of the best in hindsight: ratio of means."""
    _, chosen = jax.lax.top_k(guess, best)
    got = jnp.take_along_axis(labels, chosen, axis=1).sum(axis=1)
    return got.mean() / jax.lax.top_k(labels, best)[0].sum(axis=1).mean()
