"""Batches out of corpora of several domains, mixed by weight.

Which domain a row comes from is a pure function of (seed, step, row); what it then is, of the
domain's corpus by `data.sampling`. So a row is the same whoever asks and with whatever others.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import sampling
from data.sampling import ALL_ROWS, Corpus, Rows
from mctx.errors import UserError

CHOICE = 0xD03A1  # keeps the choice of a domain apart from the draws within it


def domains_of(directory: str | Path) -> dict[str, Path]:
    """The domains of a folder written by `python -m data.corpus`, by name; a domain is its own.

    Questions that lie beside them (`data.questions`) are no documents, and so no domain.

    Raises:
      UserError: there is no corpus in it.
    """
    directory = Path(directory)
    if (directory / "train").is_dir():
        return {directory.resolve().name: directory}
    found = {
        path.parent.name: path.parent
        for path in sorted(directory.glob("*/train")) if not (path / "support.npy").exists()
    }
    if not found:
        raise UserError(
            f"There is no corpus in {directory}; make one with `python -m data.corpus`."
        )
    return found


class Mixture(NamedTuple):
    """Corpora and their weights, which add up to 1; a row of a batch is of one of them."""

    names: tuple[str, ...]
    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]
    in_turn: bool = False  # instead of at random

    @classmethod
    def of(cls, corpora: Mapping[str, Corpus], weights: Mapping[str, float]) -> "Mixture":
        """Corpora mixed by weights of any scale; those without weight are left out.

        Raises:
          UserError: a weight is below 0 or all are 0, a corpus is not there, or tokenizers differ.
        """
        used = {name: weight for name, weight in weights.items() if weight}
        missing = [name for name in used if name not in corpora]
        if missing:
            raise UserError(
                f"There is no domain '{missing[0]}' among {', '.join(corpora)}: make it, or give "
                "it the weight 0."
            )
        if not used or min(used.values()) < 0:
            raise UserError("Weights of domains must not be below 0, and one must be above it.")
        chosen = tuple(corpora[name] for name in used)
        if len({corpus.manifest.get("tokenizer") for corpus in chosen}) > 1:
            raise UserError(f"The domains {', '.join(used)} have different tokenizers: make them "
                            "with one run of `python -m data.corpus`.")
        total = sum(used.values())
        return cls(tuple(used), chosen, tuple(weight / total for weight in used.values()))

    def domains(self, batch: int, seed: int, step: int) -> np.ndarray:
        """Which domain each row of a batch is from: int64 [batch], indices into `names`."""
        if self.in_turn:
            return np.arange(batch) % len(self.names)
        drawn = np.random.default_rng([seed, step, CHOICE]).uniform(size=batch)
        return np.searchsorted(np.cumsum(self.weights)[:-1], drawn, side="right")

    def windows(
        self, length: int, batch: int, seed: int, step: int, rows: Rows = ALL_ROWS
    ) -> np.ndarray:
        """See `data.sampling.windows`."""
        draw = partial(_spans, sampling.windows, length, batch, seed, step)
        return self._rows(draw, self.domains(batch, seed, step), rows)[0]

    def segments(
        self, length: int, batch: int, seed: int, step: int, rows: Rows = ALL_ROWS
    ) -> np.ndarray:
        """See `data.sampling.segments`."""
        draw = partial(_spans, sampling.segments, length, batch, seed, step)
        return self._rows(draw, self.domains(batch, seed, step), rows)[0]

    def histories(
        self, *, batch: int, seed: int, step: int, rows: Rows = ALL_ROWS, **size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `data.sampling.histories`."""
        draw = partial(_histories, dict(size, batch=batch, seed=seed, step=step))
        return self._rows(draw, self.domains(batch, seed, step), rows)

    def even(self) -> "Mixture":
        """The same corpora taking turns: row i is from corpus i mod n, as evaluation wants it."""
        share = 1 / len(self.names)
        return self._replace(weights=(share,) * len(self.names), in_turn=True)

    def _rows(
        self, draw: Callable[[Corpus, np.ndarray], tuple], domain: np.ndarray, rows: Rows
    ) -> tuple[np.ndarray, ...]:
        """Arrays whose row i is that of its domain's batch; every domain is asked, for errors."""
        asked = np.arange(len(domain))[rows]
        out: tuple[np.ndarray, ...] = ()
        for index, (name, corpus) in enumerate(zip(self.names, self.corpora, strict=True)):
            mine = domain[asked] == index
            try:
                found = draw(corpus, asked[mine])
            except UserError as error:
                raise UserError(
                    f"The domain '{name}' does not do here, give it the weight 0: {error}"
                ) from error
            out = out or tuple(np.empty((len(asked), *a.shape[1:]), a.dtype) for a in found)
            for whole, part in zip(out, found, strict=True):
                whole[mine] = part
        return out


def _spans(sample, length, batch, seed, step, corpus, rows) -> tuple[np.ndarray]:
    return (sample(corpus, length, batch, seed, step, rows),)


def _histories(size, corpus, rows) -> tuple[np.ndarray, np.ndarray]:
    return sampling.histories(corpus, rows=rows, **size)
