"""Per-segment numbers as rows of a result file, with bootstrap intervals over segments."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.statistics import interval, ratio

BATCH = 4  # segments of one call


def in_batches(measure: Callable[[np.ndarray], Any], tokens: np.ndarray) -> Any:
    """`measure` of every segment, in calls of one shape: a pytree of arrays [n, …].

    Args:
      measure: [BATCH, T] -> a pytree of arrays [BATCH, …].
    """
    missing = -len(tokens) % BATCH
    whole = np.pad(tokens, ((0, missing), (0, 0))).reshape(-1, BATCH, tokens.shape[1])
    outs = [jax.device_get(measure(piece)) for piece in whole]
    return jax.tree.map(lambda *xs: np.concatenate(xs)[: len(tokens)], *outs)


def nll_row(what: str, nll: np.ndarray, seed: int, **more: Any) -> dict:
    """The mean NLL of segments [n]."""
    mean = interval(nll.astype(np.float64), seed=seed)
    spread = {"value": mean.value, "unit": "nats/token", "low": mean.low, "high": mean.high}
    return {"what": what, **spread, "n": len(nll), **more}


def recovered_rows(
    none: np.ndarray, full: np.ndarray, ways: dict[str, np.ndarray], seed: int, **more: Any
) -> list[dict]:
    """NLL of `recent` (nothing more), of each way and of `full`, with what each recovers.

    Recovered is the ratio of means (design: Words); told only where full attention is clearly
    better than nothing. Each argument: [n] mean NLL of segments.
    """
    none, full = none.astype(np.float64), full.astype(np.float64)
    gains = interval(none - full, seed=seed).low > 0
    rows = []
    for what, nll in {"recent": none, **ways, "full": full}.items():
        row = nll_row(what, nll, seed, **more)
        if gains:
            back = ratio(none - nll, none - full, seed=seed)
            row |= {"recovered": back.value}
            row |= {"recovered_low": back.low, "recovered_high": back.high}
        rows.append(row)
    return rows
