"""Per-segment numbers as rows of a result file, with bootstrap intervals over groups of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.statistics import Interval, interval, ratio

BATCH = 4  # segments of one call


def in_batches(measure: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """`measure` of every segment, in calls of one shape: a pytree of arrays [n, …].

    Args:
      measure: arrays [BATCH, …] -> a pytree of arrays [BATCH, …]. arrays: [n, …] each.
    """
    count = len(arrays[0])

    def whole(x):
        padded = np.pad(x, ((0, -count % BATCH), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(-1, BATCH, *x.shape[1:])

    outs = [jax.device_get(measure(*piece)) for piece in zip(*map(whole, arrays), strict=True)]
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *outs)


def nll_row(what: str, nll: np.ndarray, groups: np.ndarray, seed: int, **more: Any) -> dict:
    """The mean NLL of segments [n], drawn by whole groups [n]."""
    mean = interval(nll.astype(np.float64), groups, seed)
    spread = {"value": mean.value, "unit": "nats/token", "low": mean.low, "high": mean.high}
    return {"what": what, **spread, "n": len(nll), **more}


def recovered_rows(
    none: np.ndarray,
    full: np.ndarray,
    ways: dict[str, np.ndarray],
    groups: np.ndarray,
    seed: int,
    **more: Any,
) -> list[dict]:
    """NLL of `recent` (nothing more), of each way and of `full`, with what each recovers.

    Recovered is the ratio of means (design: Words); told only where full attention is clearly
    better than nothing. none, full and each way: [n] mean NLL of segments; groups: [n].
    """
    room, rows = none.astype(np.float64) - full, []
    clear = interval(room, groups, seed).low > 0
    for what, nll in {"recent": none, **ways, "full": full}.items():
        rows.append(nll_row(what, nll, groups, seed, **more))
        if clear:
            gained = none.astype(np.float64) - nll
            rows[-1] |= spread(ratio(gained, room, groups, seed), "recovered")
    return rows


def spread(found: Interval, name: str) -> dict:
    """An interval as keys of a row."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
