"""One table: every way of focusing, at equal budget, on the same continuations.

Each segment is a place in an ingested history. Every method shows at most `budget` entries of
what came before and is scored by the NLL of the same next tokens. Twice: behind the whole history,
through a session, where ΔNLL against sinks + recent is told; and behind only as much history as
the base's trained window holds, where `recovered` is defined (design: recovered).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.statistics import interval, ratio
from mctx.focus.bank import BankShape, context_of, focus_for, make_bank, shown_nodes
from mctx.models.base import Rows, token_nll
from mctx.models.lensnet import utility
from mctx.models.wrapped import Wrapped, prefix_rows, read, tail_nll
from mctx.opened import Opened
from mctx.runtime import Session, SessionConfig
from mctx.training.labels import gated_utility
from mctx.training.lens import bank_nodes
from mctx.training.mof import merged_nll, read_views
from mctx.training.shown import descend
from mctx.tree.store import Tree

METHODS = (
    "recent",
    "sinks+recent",
    "random",
    "lens",
    "two heads",
    "heads+staging",
    "hindsight",
    "full",
)
PLAIN = ("recent", "sinks+recent", "full")  # the base simply reads some tokens
TOP = 2  # heads that the base runs on in the rows with several


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Attributes:
    budget: entries shown before the tail. tail: tokens scored, after one that is only read.
    near: tokens of history in the short comparison; with the tail, within the base's window.
    recent, sink: blocks that focusing methods always show.
    segments, seed: how many places, and which.
    show: by level, whether nodes that are not chosen as tokens are shown as gists. Silent is the
      default because it recovered more on the validation packages (RESULTS.md).
    candidates: blocks that hindsight may choose from behind the whole history, the recent half
      and the half that the lens likes best: labels of all would cost a pass per 48 blocks.
    """

    budget: int = 512
    tail: int = 127
    near: int = 1536
    recent: int = 4
    sink: int = 1
    segments: int = 16
    seed: int = 0
    show: tuple[bool, ...] = (True, False, False, False)
    candidates: int = 44


def places(tree: Tree, model: Wrapped, protocol: Protocol) -> np.ndarray:
    """Where the segments' continuations begin, in tokens: on the grid of the ingest windows,
    behind at least a quarter of the history."""
    first = max(protocol.near, tree.length // 4)
    starts = np.arange(
        -(-first // model.window) * model.window, tree.length - protocol.tail, model.window
    )
    chosen = np.random.default_rng(protocol.seed).choice(
        starts, min(protocol.segments, len(starts)), replace=False
    )
    return np.sort(chosen)


def session_configs(model: Wrapped, protocol: Protocol) -> dict[str, SessionConfig]:
    """The settings of the methods that focus."""
    focused = SessionConfig(
        budget=protocol.budget,
        sink=protocol.sink,
        recent=protocol.recent,
        show=protocol.show,
        max_edits=SessionConfig.capacity,
    )
    heads = dataclasses.replace(
        focused, heads=model.lens.heads, top=TOP, router="learned", merger="learned"
    )
    staged = dataclasses.replace(heads, staging=4 * protocol.budget)
    one = dict.fromkeys(("random", "lens", "hindsight"), focused)
    return {**one, "two heads": heads, "heads+staging": staged}


def compare_whole(
    opened: Opened, over: Session, protocol: Protocol, starts: Iterable[int]
) -> Iterator[dict[str, float]]:
    """For each place of a session's history, mean NLL of its tail behind all of it, by method."""
    tree = over.tree
    sessions = {
        config: Session(opened, tree, config, over.reader, over.cache)
        for config in set(session_configs(opened.model, protocol).values())
    }
    for start in map(int, starts):
        tail = tree.tokens(start, start + protocol.tail + 1)
        history = tree.tokens(0, start)
        nll = {name: plain(opened, name, history, tail, protocol) for name in PLAIN}
        for name, config in session_configs(opened.model, protocol).items():
            session = sessions[config]
            blocks = start // opened.model.gist.block
            table = block_worths(session, name, blocks, tail, protocol)
            session.worths = None if table is None else lambda _, t=table: t
            session.seek(blocks)
            nll[name] = float(session.peek(tail).mean())
        yield {name: nll[name] for name in METHODS}


def block_worths(
    session: Session, name: str, blocks: int, tail: np.ndarray, protocol: Protocol
) -> np.ndarray | None:
    """[blocks] nats that stand in for the lens, or None where the lens itself decides."""
    if name == "random":
        return np.random.default_rng([protocol.seed, blocks]).uniform(size=blocks)
    if name != "hindsight":
        return None
    # The session stands here already, focused by the lens: the method before in the same place.
    half, old = protocol.candidates // 2, blocks - protocol.recent
    near = np.arange(max(old - half, 0), old)
    shown = detailed(session)
    far = np.setdiff1d(shown[shown < old], near)[-half:]
    rest = np.setdiff1d(np.arange(old), np.concatenate([near, far]))
    free = protocol.candidates - len(near) - len(far)
    spread = rest[np.linspace(0, len(rest) - 1, free).astype(int)]
    candidates = np.sort(np.concatenate([near, far, spread]))
    recent = np.arange(old, blocks)
    held = session.cache.get(np.concatenate([candidates, recent]))  # [n, L, K_1, K, H]
    rows = Rows(*(np.swapaxes(x, 0, 1).reshape(x.shape[1], 1, -1, *x.shape[3:]) for x in held))
    labels = _labels(session.model, session.params, rows, protocol.recent, tail[None])
    table = np.full(blocks, -1.0)
    table[candidates] = np.asarray(labels[0])
    return table


def detailed(session: Session) -> np.ndarray:
    """Blocks that the first head shows as tokens."""
    live = slice(0, int(session.layouts.count[0]))
    level, index = (np.asarray(x)[0][live] for x in session.layouts[:2])
    return index[level == 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _labels(model, params, rows, recent, tail):
    """Gated-gradient labels of a true future, for all blocks of `rows` but the recent ones."""
    blocks = rows.k.shape[2] // model.gist.block
    first = jnp.broadcast_to(jnp.arange(blocks - recent), (tail.shape[0], blocks - recent))
    last = jnp.arange(blocks - recent, blocks)
    return gated_utility(model, params, rows, prefix_rows(model, params), first, last, tail)


def plain(
    opened: Opened, name: str, history: np.ndarray, tail: np.ndarray, protocol: Protocol
) -> float:
    """Mean NLL of the tail when the base simply reads some tokens and then the tail.

    recent: the last `budget` tokens. sinks+recent: prefix, the first blocks, and the most recent
    tokens (StreamingLLM with its window computed afresh, its best case). full: prefix and the last
    `near` tokens, with the tail as many as the base was trained to read at once.
    """
    model = opened.model
    sinks = history[: protocol.sink * model.gist.block]
    prefix = np.asarray(model.base.prefix, np.int32)
    shown = {
        "recent": history[-protocol.budget :],
        "sinks+recent": np.concatenate([prefix, sinks, history[len(sinks) - protocol.budget :]]),
        "full": np.concatenate([prefix, history[-protocol.near :]]),
    }[name]
    nll = _plain_nll(model, opened.params["base"], np.concatenate([shown, tail])[None])
    return float(nll[0, -protocol.tail :].mean())


@functools.partial(jax.jit, static_argnums=0)
def _plain_nll(model, base, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = read(model, {"base": base}, tokens, positions).hidden
    return token_nll(base, hidden[:, :-1], tokens[:, 1:])


def compare_near(
    opened: Opened, tree: Tree, protocol: Protocol, start: int, whole: dict[str, float]
) -> dict[str, float]:
    """Mean NLL of one place's tail behind the near history, by method; all that are defined.

    `whole` are the place's numbers behind the whole history: where no more than the near part of
    it was read, they are the same.
    """
    stop = start + protocol.tail + 1
    tokens = tree.tokens(start - protocol.near, stop)
    history, tail = np.split(tokens, [protocol.near])
    nll = {name: whole[name] for name in ("recent", "full")}
    nll["sinks+recent"] = plain(opened, "sinks+recent", history, tail, protocol)
    key = jax.random.key(start)
    focused = _near_nll(opened.model, protocol, opened.params, tokens[None], key)
    return nll | {name: float(value) for name, value in focused.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _near_nll(model, protocol, params, tokens, key):
    """The focusing methods on a bank: what a session does, for a history that fits in memory."""
    shape = BankShape(model.gist, protocol.near // model.gist.block)
    settings = dict(sink=protocol.sink, recent=protocol.recent, capacity=128, max_edits=128)
    settings["show"] = protocol.show
    focus = focus_for(model.gist, budget=protocol.budget, **settings)
    history, tail = jnp.split(tokens, [protocol.near], axis=1)
    bank = make_bank(model, params, history)
    lod0 = Rows(*(x[:, :, : protocol.near] for x in bank.rows))
    labels = _labels(model, params, lod0, protocol.recent, tail)
    distance = jnp.arange(shape.blocks)[None, ::-1]
    nodes = bank_nodes(model, shape, params, bank.states, distance, protocol.recent)
    query = bank.states[:, :, -model.lens.query :]
    lens = model.lensnet.apply({"params": params["lensnet"]}, query, nodes, jnp.zeros((1, 1), int))
    blocks = slice(shape.first_node[1], shape.first_node[1] + shape.blocks)
    worths = jnp.concatenate(
        [
            jax.random.uniform(key, (1, shape.blocks)),
            utility(lens)[:, 0, blocks],
            jnp.pad(labels, ((0, 0), (0, protocol.recent))),
        ]
    )

    def one(worth):
        shown = shown_nodes(shape, descend(shape, focus, worth[None]))
        return tail_nll(model, params, tail, *context_of(shape, bank, shown)).mean()

    random, lens, hindsight = jax.lax.map(one, worths)
    share = focus_for(model.gist, budget=protocol.budget // TOP, **settings)
    views = read_views(model, shape, share, params, tokens)
    merged, _ = merged_nll(model, params, params["mof"], views, TOP)
    return {"random": random, "lens": lens, "two heads": merged.mean(), "hindsight": hindsight}


def table(
    whole: list[dict], near: list[dict], protocol: Protocol, untrained: dict[str, str]
) -> list[dict]:
    """Rows of the result file, one a method.

    `value` is the NLL behind the whole history, `delta_nll` its difference from sinks + recent,
    `recovered` the share of what full attention gains over the recent window behind the near one.

    Args:
      whole, near: NLL by method, a dict a segment.
      untrained: by method, why its parts are not trained past their untrained control.
    """
    seed = protocol.seed
    far = {name: np.array([place[name] for place in whole]) for name in METHODS}
    close = {name: np.array([place.get(name, np.nan) for place in near]) for name in METHODS}
    gain = close["recent"] - close["full"]
    rows = []
    for name in METHODS:
        value = interval(far[name], seed=seed)
        delta = interval(far[name] - far["sinks+recent"], seed=seed)
        row = {
            "what": name,
            "value": value.value,
            "unit": "nats/token",
            "low": value.low,
            "high": value.high,
            "n": len(whole),
            "delta_nll": delta.value,
            "delta_low": delta.low,
            "delta_high": delta.high,
            "entries": protocol.near if name == "full" else protocol.budget,
            "trained": name not in untrained,
        }
        if interval(gain, seed=seed).low > 0 and np.isfinite(close[name]).all():
            back = ratio(close["recent"] - close[name], gain, seed=seed)
            row |= {
                "recovered": back.value,
                "recovered_low": back.low,
                "recovered_high": back.high,
            }
        if name in untrained:
            row["note"] = f"untrained: {untrained[name]}"
        rows.append(row)
    return rows
