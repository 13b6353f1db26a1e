"""One table: every way of focusing, at equal budget, on the same continuations.

Each segment is a place in an ingested history. Every method shows at most `budget` entries of
what came before and is scored by the NLL of the same next tokens. Twice: behind the whole history,
where ΔNLL against sinks + recent is told; and behind only as much history as the base's trained
window holds, where `recovered` is defined (design: recovered).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from experiments import methods
from experiments.methods import Scorer
from experiments.statistics import interval, ratio
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened
from mctx.runtime import Session
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


@dataclasses.dataclass(frozen=True)
class Protocol(methods.Protocol):
    """What all methods share (`experiments.methods.Protocol`), and where they are compared.

    Attributes:
    tail: tokens scored, after one that is only read.
    near: tokens of history in the short comparison; with the tail, within the base's window.
    segments: how many places; `seed` says which.
    """

    tail: int = 127
    near: int = 1536
    segments: int = 16


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


def compare(
    opened: Opened, over: Session, protocol: Protocol, starts: Iterable[int]
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """For each place of a session's history, mean NLL of its tail by method: behind the whole
    history, and behind the near part of it, as far as that is defined."""
    tree = over.tree
    far = Scorer(opened, tree, protocol, over.reader, over.cache)
    for start in map(int, starts):
        tail = tree.tokens(start, start + protocol.tail + 1)
        text = tree.tokens(start - protocol.near, start)
        near = Scorer(opened, text, protocol, over.reader, most_blocks=tree.blocks)
        far.seek(start // opened.model.gist.block)
        whole = {name: _mean(far, name, tail) for name in METHODS if name != "full"}
        # The recent window is the same behind either; full attention reads the near part only.
        short = {"recent": whole["recent"]}
        short |= {name: _mean(near, name, tail) for name in METHODS if name not in short}
        yield whole | {"full": short["full"]}, short


def _mean(scorer: Scorer, name: str, tail: np.ndarray) -> float:
    """NaN where the method is not defined."""
    nll = scorer.nll(name, tail)
    return float("nan") if nll is None else float(nll.mean())


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
