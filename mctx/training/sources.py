"""What a phase is built from: its config, the corpora, and the parts trained before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mctx.models.base import BaseConfig
from mctx.models.gistnet import GistConfig
from mctx.models.lensnet import LensConfig
from mctx.models.wrapped import Wrapped


class Sources(NamedTuple):
    """Attributes:
    load: names of items -> (item -> parameters, the `config` item).
    segments: (length, batch, seed, step, rows) -> int32 [rows, length] within one package.
    windows: the same, anywhere in the stream.
    histories: see `data.sampling.histories`.
    held_out: like `segments`, of the validation corpus.
    held_histories: like `histories`, of the validation corpus.
    domains: what held-out text there is: row i is of the domain i mod their number.
    questions: see `data.questions.Questions.draw`; None where the corpus has none.
    held_questions: the same, of those for validation.
    """

    load: Callable[[tuple[str, ...]], tuple[dict, dict]]
    windows: Callable[..., np.ndarray]
    segments: Callable[..., np.ndarray]
    histories: Callable[..., tuple[np.ndarray, np.ndarray]]
    held_out: Callable[..., np.ndarray]
    held_histories: Callable[..., tuple[np.ndarray, np.ndarray]]
    domains: tuple[str, ...] = ("text",)
    questions: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
    held_questions: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None


def per_domain(
    domains: tuple[str, ...], measure: Callable[[slice], dict[str, float]]
) -> dict[str, float]:
    """What `measure` says of all held-out rows, and as `<name>/<domain>` of those of each domain.

    Where there is one domain, all is said once.
    """
    found = measure(slice(None))
    if len(domains) > 1:
        for i, domain in enumerate(domains):
            part = measure(slice(i, None, len(domains)))
            found |= {f"{name}/{domain}": value for name, value in part.items()}
    return found


def scored(
    domains: tuple[str, ...], count: int, score: Callable[[np.ndarray], dict], size: int = 8
) -> dict[str, float]:
    """`per_domain` of numbers that are known only piece by piece of the rows.

    Args:
      count: held-out rows.
      score: indices [<= size] of rows, all of one domain -> by name the mean over them; or two
        arrays [rows], told as the `ratio` of their means over all rows.
    """
    rows = [np.arange(i, count, len(domains)) for i in range(len(domains))]
    pieces = [mine[j : j + size] for mine in rows for j in range(0, len(mine), size)]
    values: dict[str, np.ndarray] = {}
    for piece in pieces:
        for name, value in score(piece).items():
            top, bottom = value if isinstance(value, tuple) else (value, 1.0)
            tops, bottoms = values.setdefault(name, np.empty((2, count)))
            tops[piece], bottoms[piece] = top, bottom

    def told(of: slice) -> dict[str, float]:
        return {name: ratio(*value[:, of].mean(axis=1)) for name, value in values.items()}

    return per_domain(domains, told)


def ratio(top: float, bottom: float) -> float:
    """A part of what there is to have; NaN, which is logged as null, where that is nothing."""
    return float(top / bottom) if bottom > 0 else float("nan")


def wrapped_from(config, trained: dict) -> Wrapped:
    """The model a phase works on: configs of parts already trained win over the config file's."""
    part = {
        "base": BaseConfig.from_dict,
        "gist": GistConfig.from_dict,
        "lens": LensConfig.from_dict,
    }
    given = {name: trained.get(name) or config.get(name) for name in part}
    made = {name: make(dict(given[name])) for name, make in part.items() if given[name]}
    window = trained.get("window") or config.window
    remat = config.get("remat", False)
    return Wrapped(**made, window=window, dtype=config.dtype, remat=remat)
