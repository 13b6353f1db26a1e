"""What rows of tokens recover of a history, by how many tokens they are chosen among.

Of every stretch of text as many rows are kept, in each layer and head its own: those that the last
tokens before look at most (as SnapKV, Li et al. 2024, arXiv:2404.14469, but without its pooling
over neighbours, and the rows of these tokens are judged like all others), or a repetition of the
text (KVzip, Kim et al. 2025, arXiv:2505.23416), or, a bound, the continuation. What is looked at
lies unevenly, so that wide stretches keep better rows than narrow ones; it is why a node of a
GistNet is as wide as it is. Cross-fitted, every token of the continuation is scored behind rows
that its neighbours, every other token, look at: how far it helps to know where the text goes,
without knowing what the very token asks for.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.statistics import interval, ratio
from experiments.suites import Suite
from experiments.suites.gists import NEAR, Protocol, length, looks, most_looked_at
from experiments.suites.rows import in_batches
from experiments.suites.segments import Segments
from experiments.suites.views import View, row
from mctx.focus.bank import plain_context, read_history
from mctx.models.base import Read, Rows
from mctx.models.wrapped import Wrapped, read_behind, tail_nll
from mctx.opened import Opened
from mctx.training.attending import of_attention

AMONG = 32, 64, 128, 256, 512
BY = "last tokens", "repetition", "hindsight crossfit", "hindsight"  # whose attention chooses
LAST = 64  # tokens of the history that look back
GAIN = "of full attention's gain"


def measure(
    opened: Opened,
    segments: Segments,
    seed: int,
    protocol: Protocol = NEAR,
    among: tuple[int, ...] = AMONG,
) -> dict[str, list[dict]]:
    """Segments [n, history + tail + 1] -> rows by ratio (`view`), who chose, and among how many."""
    model, params = opened.model, opened.params
    cases = [(by, n, of) for by in BY for n in protocol.ratios for of in among if of >= n]

    @jax.jit
    def score(params, tokens):
        history, tail = jnp.split(tokens, [protocol.history], axis=1)
        rows, states, prefix = read_history(model, params, history)

        def nll(some):  # [B, T]
            return tail_nll(model, params, tail, *plain_context(prefix, some))

        texts = {"repetition": history, "hindsight": tail[:, :-1]}
        looked = {by: [looks(model, params, prefix, rows, text)] for by, text in texts.items()}
        looked["last tokens"] = [looked_back(model, params, prefix, Read(None, rows, states))]
        looked["hindsight crossfit"] = looked_by_others(model, params, prefix, rows, tail[:, :-1])
        turn = np.arange(protocol.tail) % 2

        def behind_best(by, n, of):
            each = [nll(most_looked_at(rows, worth, of, of // n)) for worth in looked[by]]
            return jnp.where(turn, each[-1], each[0])

        none = Rows(*(x[:, :, :0] for x in rows))
        told = [nll(none), nll(rows), *(behind_best(*case) for case in cases)]
        return jnp.stack([x[:, -protocol.scored :].mean(axis=1) for x in told], axis=1)

    columns = in_batches(functools.partial(score, params), segments.tokens).T
    none, full, *each = columns.astype(np.float64)
    units = segments.units
    if interval(none - full, units, seed).low <= 0:  # there is nothing to recover a part of
        return {}
    rows = [
        row(f"1 in {n}", by, GAIN, ratio(none - nll, none - full, units, seed), len(nll), among=of)
        for (by, n, of), nll in zip(cases, each, strict=True)
    ]
    return {"choices": rows}


def looked_back(model: Wrapped, params: dict, prefix: Rows, window: Read) -> jax.Array:
    """The most that any of the last tokens of a window attends to each before it: [B, T, L, K]."""
    before, size = prefix.k.shape[2], window.rows.k.shape[2]
    last = min(LAST, size)
    earlier = np.arange(size) < np.arange(size - last, size)[:, None]  # [last, T]

    def most(shares):
        return jnp.where(earlier, shares[..., -last:, before:], 0.0).max(axis=(2, 3))

    none = Rows(*(x[:, :, :0] for x in window.rows))
    found = of_attention(model.base, params["base"], window, none, prefix, most)
    return found.transpose(1, 3, 0, 2)


def looked_by_others(
    model: Wrapped, params: dict, prefix: Rows, rows: Rows, text: jax.Array
) -> list[jax.Array]:
    """The most that the odd, and that the even, tokens of a text [B, t] read behind rows attend to
    each: what is right to choose by for the even, and for the odd. [B, T, L, K] each."""
    said = read_behind(model, params, text, *plain_context(prefix, rows), collect=True)
    behind = slice(prefix.k.shape[2], prefix.k.shape[2] + rows.k.shape[2])

    def most(shares):
        halves = [shares[:, :, :, first::2, behind] for first in (1, 0)]
        return jnp.stack([half.max(axis=(2, 3)) for half in halves])

    found = of_attention(model.base, params["base"], said, rows, prefix, most)  # [L, 2, B, K, T]
    return list(found.transpose(1, 2, 4, 0, 3))


SUITE = Suite(
    ("base",),
    length,
    measure,
    (
        "As many rows of a history of 512 tokens, as though they were gists of it: those of every "
        "so many tokens that its last 64 look at most, or a repetition of the text, or, a bound, "
        "the continuation, by layer and head; *crossfit*, every other token of the continuation, "
        "for the tokens between. NLL of the next 128.",
    ),
    views={
        f"1 in {n}": View(f"Recovered by one row in {n}, chosen among", "among", GAIN)
        for n in NEAR.ratios
    },
)
