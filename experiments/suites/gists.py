"""What gists alone recover of a history: right behind it, and far behind recent tokens.

Beside the levels of a GistNet: gists of another text, as many rows that nobody trained (those of
every n-th token, the means of n, and of every node those that a repetition of the text looks at
most, as KVzip keeps them, Kim et al. 2025, arXiv:2505.23416; or, a bound, the continuation itself),
and a coarse level in place of silence for what lies far.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.statistics import interval
from experiments.suites import Suite
from experiments.suites.masks import masked_nll
from experiments.suites.rows import in_batches, nll_row, recovered_rows, spread
from experiments.suites.segments import Segments
from mctx.focus.bank import BankShape, make_bank, plain_context
from mctx.models.base import Rows, token_hits, token_nll
from mctx.models.wrapped import Wrapped, gist_rows, read_behind, tail_nll
from mctx.opened import Opened
from mctx.training.attending import most_attention

PLAIN = "last", "mean", "repetition's", "hindsight"  # what stands for n tokens


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Attributes:
    history: tokens that are shown as gists. tail: tokens read behind them.
    scored: how many of the tail, the last, are told of.
    ratios: tokens an entry, of rows that nobody trained.
    """

    history: int = 512
    tail: int = 128
    scored: int = 128
    ratios: tuple[int, ...] = (32, 8)


NEAR, FAR = Protocol(), Protocol(history=1536, tail=511, scored=256)


def length(model: Wrapped, protocol: Protocol = NEAR) -> int | None:
    room = model.base.window >= protocol.history + protocol.tail + len(model.base.prefix)
    return protocol.history + protocol.tail + 1 if room else None


def measure(
    opened: Opened,
    segments: Segments,
    seed: int,
    protocol: Protocol = NEAR,
    name: str = "gists",
) -> dict[str, list[dict]]:
    """Segments [n, history + tail + 1] -> rows recent (nothing shown), lod1, lod2, …, full."""
    model, params = opened.model, opened.params
    shape = BankShape(model.gist, protocol.history // model.gist.block)
    ways = shown_by(model, shape, protocol)
    shown = np.stack([mask for mask, _ in ways.values()])  # [S, N]
    few = {f"{how} 1 in {n}": protocol.history // n for n in protocol.ratios for how in PLAIN}
    scored = protocol.scored

    @jax.jit
    def score(params, tokens, others):
        history, tail = jnp.split(tokens, [protocol.history], axis=1)
        bank = make_bank(model, params, history)
        another = make_bank(model, params, others[:, : protocol.history])

        def behind(bank, masks):
            masks = jnp.broadcast_to(masks[:, None], (len(masks), len(tokens), masks.shape[1]))
            return masked_nll(model, params, shape, bank, tail, masks, scored).mean(axis=-1)

        nll = behind(bank, shown)
        strange = behind(another, (shape.node_level == 1)[None])
        rows = Rows(*(x[:, :, : protocol.history] for x in bank.rows))
        texts = history, tail[:, :-1]
        looked = [looks(model, params, bank.prefix, rows, text) for text in texts]
        among = {n: chosen_among(model, protocol, n) for n in protocol.ratios}
        few = untrained(rows, looked, among)
        fewer = [plain_nll(params, bank.prefix, some, tail) for some in few]
        return jnp.concatenate([nll, strange, *fewer], axis=1)

    def plain_nll(params, prefix, rows, tail):
        nll = tail_nll(model, params, tail, *plain_context(prefix, rows))
        return nll[:, -scored:].mean(axis=1, keepdims=True)

    tokens = segments.tokens
    columns = in_batches(functools.partial(score, params), tokens, tokens[segments.partners]).T
    entries = {way: count for way, (_, count) in ways.items()}
    entries |= {"lod1 of another text": entries["lod1"]} | few
    nll = dict(zip(entries, columns, strict=True))
    none, full = nll.pop("recent"), nll.pop("full")
    rows = recovered_rows(none, full, nll, segments.units, seed)
    unlearned = {f"lod{level}" for level in range(model.gist.trained + 1, model.gist.levels + 1)}
    for row in rows:
        what = row["what"]
        learned = what not in few and unlearned.isdisjoint(what.split())
        row |= {"entries": entries[what], "trained": learned}
        row |= {"sees_future": True} if "hindsight" in what else {}
    return {name: rows}


def shown_by(model: Wrapped, shape: BankShape, protocol: Protocol) -> dict[str, tuple]:
    """By name, which nodes of the bank a way shows, bool [N], and how many entries these are."""
    level, block = shape.node_level, model.gist.block
    masks = {"recent": level < 0, "full": level == 0}
    masks |= {f"lod{one}": level == one for one in whole_levels(model, protocol.history)}
    span, coarse = far_part(model, protocol)
    if coarse:
        near = (level == 0) & (shape.node_block * block >= span)
        kept = f"the last {protocol.history - span}"
        far = (level == coarse) & (shape.node_block * block < span)
        masks |= {f"{kept} as tokens": near, f"{kept} as tokens, lod{coarse} before": near | far}
    cost = np.array((block, *model.gist.entries))[level]
    return {name: (mask, int(cost[mask].sum())) for name, mask in masks.items()}


def whole_levels(model: Wrapped, history: int) -> list[int]:
    """Levels whose nodes tile the history."""
    levels = range(1, model.gist.levels + 1)
    return [level for level in levels if history % model.gist.span(level) == 0]


def far_part(model: Wrapped, protocol: Protocol) -> tuple[int, int]:
    """Tokens of the far part of a history, and the coarsest level whose nodes tile it while a
    quarter of the history or more lies behind it; 0 and 0 where there is none."""
    for level in range(model.gist.levels, 1, -1):
        span = model.gist.span(level)
        far = protocol.history * 3 // 4 // span * span
        if far:
            return far, level
    return 0, 0


def looks(model: Wrapped, params: dict, prefix: Rows, rows: Rows, text: jax.Array) -> jax.Array:
    """The most that any token of a text [B, t], read behind rows, attends to each: [B, T, L, K].

    In as many pieces as the base's trained window asks for.
    """
    room = model.base.window - len(model.base.prefix) - rows.k.shape[2]

    def piece(some):
        said = read_behind(model, params, some, *plain_context(prefix, rows), collect=True)
        return most_attention(model.base, params["base"], said, rows, prefix)

    pieces = [text[:, at : at + room] for at in range(0, text.shape[1], room)]
    return functools.reduce(jnp.maximum, map(piece, pieces))


def chosen_among(model: Wrapped, protocol: Protocol, n: int) -> int:
    """Among how many tokens rows are chosen where an entry stands for n: as many as under a node of
    the level that has an entry for n and tiles the history, or under a block."""
    spans = {level: model.gist.span(level) for level in whole_levels(model, protocol.history)}
    alike = [span for level, span in spans.items() if span == n * model.gist.entries[level - 1]]
    return max([model.gist.block, n, *alike])


def untrained(rows: Rows, looked: list[jax.Array], among: dict[int, int]) -> list[Rows]:
    """By ratio n, what stands for n tokens, in the order of `PLAIN`: rows [L, B, T, K, H].

    looked: attention [B, T, L, K] of a repetition, and of what follows. among: by ratio, how many
    tokens are chosen among at once.
    """
    some = []
    for n, of in among.items():
        by = Rows(*(x.reshape(*x.shape[:2], -1, n, *x.shape[3:]) for x in rows))
        some += [Rows(*(x[:, :, :, -1] for x in by)), Rows(*(x.mean(axis=3) for x in by))]
        some += [most_looked_at(rows, worth, of, of // n) for worth in looked]
    return some


def most_looked_at(rows: Rows, worth: jax.Array, of: int, count: int) -> Rows:
    """Of every `of` tokens the `count` that are worth most, [B, T, L, K], each layer and head its
    own; in order of time."""
    worth = worth.transpose(2, 0, 3, 1)  # [L, B, K, T]
    best = jax.lax.top_k(worth.reshape(*worth.shape[:3], -1, of), count)[1]
    first = jnp.arange(worth.shape[3] // of)[:, None] * of
    which = (jnp.sort(best, axis=-1) + first).reshape(*worth.shape[:3], -1)  # [L, B, K, n]
    which = jnp.moveaxis(which, 2, 3)[..., None]
    return Rows(*(jnp.take_along_axis(x, which, axis=2) for x in rows))


def said_again(
    opened: Opened, segments: Segments, seed: int, protocol: Protocol = NEAR
) -> list[dict]:
    """What blocks are told again from nothing but their own gists, behind their first token:
    NLL and share of the tokens that are the likeliest; and the same without gists."""
    model, params, units = opened.model, opened.params, segments.units
    block = model.gist.block

    @jax.jit
    def score(params, tokens):
        history = tokens[:, : protocol.history]
        bank = make_bank(model, params, history)
        words = history.reshape(-1, block)
        gists = bank.gists[0].reshape(len(words), 1, *bank.gists[0].shape[2:])
        own = gist_rows(model, params, gists)
        found = []
        for rows in Rows(*(x[:, :, :0] for x in own)), own:
            hidden = read_behind(
                model, params, words[:, :-1], *plain_context(bank.prefix, rows)
            ).hidden
            each = [of(params["base"], hidden, words[:, 1:]) for of in (token_nll, token_hits)]
            found += [x.reshape(len(tokens), -1).mean(axis=1) for x in each]
        return jnp.stack(found, axis=1)  # [B, 4]

    none, guessed, nll, hits = in_batches(functools.partial(score, params), segments.tokens).T
    made = []
    for what, value, share, entries in (
        ("its first token alone", none, guessed, 0),
        ("behind its gist", nll, hits, model.gist.entries[0]),
    ):
        right = interval(share.astype(np.float64), units, seed)
        made.append(nll_row(what, value, units, seed, entries=entries) | spread(right, "accuracy"))
    return made


def near(opened, segments, seed, protocol: Protocol = NEAR) -> dict[str, list[dict]]:
    found = measure(opened, segments, seed, protocol)
    return found | {"gists-again": said_again(opened, segments, seed, protocol)}


def far(opened, segments, seed, protocol: Protocol = FAR) -> dict[str, list[dict]]:
    return measure(opened, segments, seed, protocol, "gists_far")


UNTRAINED = (
    "*1 in* n: as many rows, untrained: of every n-th token, of n in the mean, those that a "
    "repetition of the text looks at most, or the continuation does, by layer and head, chosen "
    "among as many tokens as gists of as many entries choose among. "
    "*Of another text*: gists of a segment of another package or author, where there is one, which "
    "should be worse than none."
)
SUITE = Suite(
    ("base", "gistnet"),
    length,
    near,
    (
        "A history of 512 tokens, shown as nodes of one level alone; NLL of the next 128. "
        + UNTRAINED,
    ),
)
FAR_SUITE = Suite(
    ("base", "gistnet"),
    functools.partial(length, protocol=FAR),
    far,
    (
        "A history of 1,536 tokens, shown as nodes of one level alone, and the recent 511 read "
        "behind it; NLL of the last 256. " + UNTRAINED,
    ),
)
