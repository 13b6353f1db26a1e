"""Phase `lens`: LensNet learns to foresee which blocks the next tokens will need.

Labels are gated gradients of the true continuation; the lens sees gists, distances, what finders
found and the window states of the last tokens before it. Histories are a near stretch and stretches
from far back in the same package, at their true distances, so that the far past is in the training
data. Text seldom needs one detail of one block, so some rows are questions whose answer lies in
blocks that are known: these are worth what the config says, and no gradient is asked.

The loss is Poisson's for the gain and the harm of every node: it is least where the predicted
utility equals the expected one (so it is calibrated in nats) and it ranks as a listwise
cross-entropy does, because its gradient for each node is prediction minus label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.bank import BankShape, complete_gists, read_history
from mctx.models.base import Rows
from mctx.models.finder import found_in, nothing_found
from mctx.models.lensnet import Nodes, seen, utility
from mctx.models.wrapped import Wrapped, init_part
from mctx.sharding import by_rows, whole
from mctx.training.labels import label_history
from mctx.training.loop import Phase
from mctx.training.shown import node_utility
from mctx.training.sources import Sources, scored, wrapped_from

ABSENT = -1e9  # nats of a block that is not there
GOLDEN = 0.6180339887498949  # spreads the numbers of rows evenly


def phase(config, sources: Sources) -> Phase:
    """See `mctx.training.loop.Phase`; `config` as in experiments/configs/pico_lens.py."""
    frozen, trained = sources.load(("base", "gistnet"))
    trained = {name: known for name, known in trained.items() if name != "lens"}  # made anew
    model = wrapped_from(config, trained)
    if config.near % model.window or config.far % model.window:
        raise UserError(
            f"stretches of near={config.near} and far={config.far} tokens are not whole windows of "
            f"{model.window}: make config.near and config.far multiples of that."
        )
    shape = BankShape(model.gist, (config.near + config.groups * config.far) // model.gist.block)
    candidates = shape.blocks - config.recent

    def loss(params, frozen, batch, key):
        seen = look(model, shape, config.recent, frozen, batch)
        texts = texts_of(config, len(batch["tokens"]))
        there = jnp.arange(candidates) >= batch["first"][:, None]
        labels = gated(model, config, frozen, seen, texts, key)
        known = config.get("support", 0.0) * batch["support"][texts:, :candidates]
        logs, scores = _outlook(model, shape, candidates, params, seen)
        scores = jnp.where(there[:, None], scores, ABSENT)
        goal = _goals(shape, jnp.concatenate([labels, known]), scores, config.novel)
        value = poisson(logs, goal, seen.nodes.valid)
        found = {"recall": recall(scores[texts:, 0], known > 0, config.novel)} if len(known) else {}
        return value, found | {
            "poisson": value,
            "captured": _share(*captured(scores[:texts, 0], labels, config.novel)),
            "overlap": _overlap(scores, config.novel),
        }

    return Phase(
        name="lens",
        item="lensnet",
        init=lambda key: init_part(model, "lensnet", key),
        loss=loss,
        batch=functools.partial(draw, config, model.gist.block, sources),
        batch_size=config.batch_size,
        frozen=frozen,
        config={**trained, "lens": model.lens.to_dict()},
        evaluate=judging(config, sources, model, shape),
    )


def judging(config, sources: Sources, model: Wrapped, shape: BankShape) -> Callable:
    """The `evaluate` of a `Phase`: what the lens's best blocks capture of the labels of held-out
    texts, and recall of the support of held-out questions; beside guesses that need no lens."""
    candidates = shape.blocks - config.recent
    texts, questions = held_out(config, model.gist.block, sources, candidates)

    def guesses(params, seen):
        scores = _outlook(model, shape, candidates, params, seen)[1][:, 0]  # [B, candidates]
        recency = jnp.broadcast_to(jnp.arange(candidates, dtype=jnp.float32), scores.shape)
        return {"lens": scores, "recency": recency}

    @jax.jit
    def score_texts(params, frozen, batch):
        batch = by_rows(batch)
        seen = look(model, shape, config.recent, frozen, batch)
        labels = gated(model, config, frozen, seen, len(batch["tokens"]), jax.random.key(0))
        chance = {"random": jax.random.uniform(jax.random.key(1), labels.shape)}
        every = guesses(params, seen) | chance
        found = {f"captured_{k}": captured(v, labels, config.novel) for k, v in every.items()}
        return whole(found)

    @jax.jit
    def score_questions(params, frozen, batch):
        batch = by_rows(batch)
        seen = look(model, shape, config.recent, frozen, batch)
        support = batch["support"][:, :candidates]
        every = guesses(params, seen)
        return whole({f"recall_{k}": recall(v, support, config.novel) for k, v in every.items()})

    def evaluate(params, frozen):
        def over(score, batch, domains):
            def of(rows):
                return score(params, frozen, {k: v[rows] for k, v in batch.items()})

            return scored(domains, len(batch["tokens"]), of)

        found = over(score_texts, texts, sources.domains)
        return found | (over(score_questions, questions, ("questions",)) if questions else {})

    return evaluate


def texts_of(config, rows: int) -> int:
    """How many of the rows of a batch are text; the others, the last, are questions.

    Raises UserError where that is no whole number.
    """
    asked = config.get("questions", 0.0) * rows
    if asked != round(asked) or not 0 <= asked < rows:
        raise UserError(
            f"questions={config.questions} of {rows} rows at a time are no whole number of rows "
            "below theirs: choose another share, batch_size or grad_accum."
        )
    return rows - round(asked)


def draw(config, block: int, sources: Sources, step: int, rows) -> dict[str, np.ndarray]:
    """Rows of a batch: texts, then questions with the support that is known."""
    size, order = _sizes(config, block), dict(seed=config.train.seed, step=step)
    texts = texts_of(config, config.batch_size)
    asked = np.arange(config.batch_size)[rows]
    of_text = dict(order, batch=texts, rows=asked[asked < texts])
    tokens, distance = _histories(config, size, sources.histories, of_text)
    batch = {"tokens": tokens, "distance": distance, "support": np.zeros(distance.shape, bool)}
    if texts < config.batch_size:
        rest = config.batch_size - texts
        of_questions = dict(order, batch=rest, rows=asked[asked >= texts] - texts)
        more = _questions(sources.questions, size, of_questions)
        pairs = zip(batch.items(), more, strict=True)
        batch = {name: np.concatenate([text, question]) for (name, text), question in pairs}
    numbers = step * config.batch_size + asked
    return batch | {"first": _begins(config, block, numbers, batch["support"])}


def _begins(config, block: int, rows: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The block with which each history begins: the first, or, for a share of the rows [B] (by
    their numbers), the first near one, if nothing before that is asked for. A lens that knew long
    histories alone would take what stands near for faint in a short one."""
    far = config.groups * config.far // block
    short = np.modf(rows * GOLDEN)[0] < config.get("short", 0.0)
    return np.where(short & ~support[:, :far].any(axis=1), far, 0).astype(np.int32)


def held_out(config, block: int, sources: Sources, candidates: int) -> tuple[dict, dict]:
    """What a lens is judged on: texts; and questions with support among the candidates, if any."""
    size, order = _sizes(config, block), dict(seed=config.train.seed, step=0, rows=slice(None))
    count = config.eval_segments
    tokens, distance = _histories(config, size, sources.held_histories, dict(order, batch=count))
    texts = {"tokens": tokens, "distance": distance}
    if not config.get("questions"):
        return texts, {}
    drawn = _questions(sources.held_questions, size, dict(order, batch=2 * count))
    some = np.flatnonzero(drawn[2][:, :candidates].any(axis=1))[:count]
    names = "tokens", "distance", "support"
    return texts, {name: array[some] for name, array in zip(names, drawn, strict=True)}


def _sizes(config, block) -> dict:
    return dict(length=config.near + config.groups * config.far, tail=config.tail + 1, block=block)


def _histories(config, size, source, order):
    parts = dict(near=config.near, far=config.far, groups=config.groups, reach=config.reach)
    return source(**parts, tail=size["tail"], block=size["block"], **order)


def _questions(source, size, order):
    if source is None:
        raise UserError("this corpus has no questions: make some with `python -m data.questions`, "
                        "or give --config.questions=0.")
    return source(**size, **order)


def _outlook(model, shape, candidates, params, seen):
    """Logs of all nodes [B, heads + 1, N, 2], and what they make the candidates worth."""
    logs = model.lensnet.apply({"params": params}, seen.query, seen.nodes)
    return logs, candidate_utility(shape, logs, candidates)


class Seen(NamedTuple):
    """Histories as the lens sees them, and what labels them; without gradients.

    Attributes:
      rows: of tokens, [L, B, T, K, H]. prefix: [L, 1, P, K, H]. tail: [B, C + 1].
      query: [L + 1, B, Q, D]. nodes: N of the bank.
      first: [B], the block with which each history begins; what is before it is not there.
    """

    rows: Rows
    prefix: Rows
    tail: jax.Array
    query: jax.Array
    nodes: Nodes
    first: jax.Array


def look(model: Wrapped, shape: BankShape, recent: int, frozen: dict, batch: dict) -> Seen:
    """Reads the histories of a batch."""
    history, tail = jnp.split(batch["tokens"], [shape.blocks * model.gist.block], axis=1)
    rows, states, prefix = read_history(model, frozen, history)
    query = states[:, :, -model.lens.query :]
    first = jnp.broadcast_to(batch.get("first", 0), len(tail))
    of = states, rows, query, batch["distance"], recent, first
    return Seen(rows, prefix, tail, query, bank_nodes(model, shape, frozen, *of), first)


def gated(model: Wrapped, config, frozen: dict, seen: Seen, texts: int, key) -> jax.Array:
    """Labels of the first `texts` rows, of the blocks before the recent ones: [texts, blocks]."""
    rows = Rows(*(x[:, :texts] for x in seen.rows))
    of = model, frozen, rows, seen.prefix, seen.tail[:texts]
    labels = label_history(*of, config.recent, config.sets, key, seen.first[:texts])
    return jax.lax.stop_gradient(labels)


def bank_nodes(
    model: Wrapped,
    shape: BankShape,
    params: dict,
    states: jax.Array,
    rows: Rows,
    query: jax.Array,
    distance: jax.Array,
    recent: int,
    first: jax.Array | int = 0,
) -> Nodes:
    """Every node of a bank; an LOD0 node is described by its LOD1 twin.

    Valid are those that can be expanded: gists that cover none of the recent blocks.

    Args:
      states: [L + 1, B, T, D]. rows: of [L, B, T or more, K, H], those of tokens first.
      query: [L + 1, B, Q, D], states of the last tokens.
      distance: [B, blocks] between each block and the history's end.
      recent: blocks at the end that are always shown as tokens.
      first: [B], the block with which each history begins; what is before it is not there.
    """
    gists = complete_gists(model, params, *jax.lax.stop_gradient((states, rows)))
    flat = [seen(g) for g in [gists[0], *gists]]  # [B, n, W] each
    last = shape.node_block + shape.spans[shape.node_level] - 1
    expandable = (shape.node_level > 0) & (last < shape.blocks - recent)
    b = states.shape[1]
    there = shape.node_block >= jnp.broadcast_to(first, b)[:, None]
    looked = query, distance, recent, first
    return Nodes(
        gists=jax.lax.stop_gradient(jnp.concatenate(flat, axis=1)),
        level=jnp.broadcast_to(np.maximum(shape.node_level, 1), (b, len(last))),
        distance=distance[:, last],
        valid=expandable & there,
        found=found_by_node(model, shape, params["base"], rows.k, *looked),
    )


def found_by_node(
    model: Wrapped, shape: BankShape, base: dict, keys, query, distance, recent: int, first=0
) -> jax.Array:
    """What the lens's finders say of every node, the best beneath it: [B, N, F].

    They look over the blocks before the recent ones, as though all the blocks that the distances
    span were there; arguments as of `bank_nodes`, `keys` its rows' keys.
    """
    if not model.lens.finders:
        return nothing_found(model, (query.shape[1], len(shape.node_level)))
    tokens = keys[:, :, : shape.blocks * model.gist.block]
    block, first = jnp.arange(shape.blocks), jnp.broadcast_to(first, len(distance))
    live = (block >= first[:, None]) & (block < shape.blocks - recent)
    begun = jnp.take_along_axis(distance, first[:, None], axis=1)[:, 0]
    times = (begun + 1 - distance[:, -1]) / (shape.blocks - first)
    live = live[:, None, None, None]  # of every finder's queries
    found = found_in(model, base, query, tokens, live, times)  # [B, blocks, F]
    return jax.lax.stop_gradient(
        jax.vmap(functools.partial(node_utility, shape), in_axes=-1, out_axes=-1)(found)
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


def recall(guess: jax.Array, support: jax.Array, best: int) -> jax.Array:
    """Share of the supporting blocks that are among the `best` guessed ones, [B, blocks] each:
    the mean over the rows that have any."""
    _, chosen = jax.lax.top_k(guess, best)
    got = jnp.take_along_axis(support, chosen, axis=1).sum(axis=1)
    count = support.sum(axis=1)
    return jnp.sum(got / jnp.maximum(count, 1)) / jnp.maximum(jnp.sum(count > 0), 1)


def captured(guess: jax.Array, labels: jax.Array, best: int) -> tuple[jax.Array, jax.Array]:
    """Label of the `best` guessed blocks, and of the best in hindsight, [B] each: what is captured
    is the ratio of their means."""
    _, chosen = jax.lax.top_k(guess, best)
    got = jnp.take_along_axis(labels, chosen, axis=1).sum(axis=1)
    return got, jax.lax.top_k(labels, best)[0].sum(axis=1)


def _share(got: jax.Array, most: jax.Array) -> jax.Array:
    """Ratio of means; NaN where there was nothing to capture."""
    return jnp.where(most.sum() > 0, got.sum() / most.sum(), jnp.nan)
