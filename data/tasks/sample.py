"""Samples of all families: `make` gives one question over one history of the length asked for."""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data.tasks import counting, edits, facts, retrieval
from data.tasks.assembly import Encoder, Plan, Sample, Setting, prompt_length, rule_score
from data.tasks.haystack import Haystack, open_haystack
from data.tasks.hiding import hide
from data.tasks.words import Split
from mctx.errors import UserError
from mctx.tokenizer import Tokenizer

__all__ = ["FAMILIES", "Haystack", "Sample", "edit", "make", "open_haystack", "rule_score"]


class Family(NamedTuple):
    """How a family is planned, with which parameters, and in what it is hidden by itself."""

    plan: Callable[..., Plan]
    parameters: Mapping = {}
    haystack: str = "noise"


# RULER's tasks less the two that need a download, under its names, then this project's own. Where
# RULER hides in essays, random sentences stand in: name a text to hide in that.
FAMILIES: dict[str, Family] = {
    "niah_single_1": Family(retrieval.needles, {}, "repeat"),
    "niah_single_2": Family(retrieval.needles),
    "niah_single_3": Family(retrieval.needles, {"type_v": "uuids"}),
    "niah_multikey_1": Family(retrieval.needles, {"num_k": 4}),
    "niah_multikey_2": Family(retrieval.needles_among_needles),
    "niah_multikey_3": Family(
        retrieval.needles_among_needles, {"type_k": "uuids", "type_v": "uuids"}
    ),
    "niah_multivalue": Family(retrieval.needles, {"num_v": 4}),
    "niah_multiquery": Family(retrieval.needles, {"num_q": 4}),
    "vt": Family(retrieval.tracking, {}, "repeat"),
    "cwe": Family(counting.common_words),
    "fwe": Family(counting.frequent_words),
    "distractors": Family(retrieval.distractors),
    "facts_1": Family(facts.facts, {"hops": 1}),
    "facts_2": Family(facts.facts, {"hops": 2}),
    "facts_3": Family(facts.facts, {"hops": 3}),
    "kv": Family(retrieval.pairs),
}
NAMES = (*FAMILIES, "edits")


def make(
    family: str,
    tokenizer: Tokenizer,
    length: int,
    seed: int,
    *,
    depth: float | None = None,
    haystack: Haystack | str | None = None,
    split: Split = "test",
    block: int = 32,
    **parameters,
) -> Sample:
    """One sample: a pure function of its arguments.

    Args:
      family: one of `NAMES`; `edits` gives the sample after the edit (`edit` gives all of it).
      tokenizer: of the model that is to read it.
      length: tokens of the prompt; it gets the greatest number up to it that is 1 modulo `block`.
      seed: non-negative.
      depth: 0..1, where the first supporting statement shall stand; None: anywhere.
      haystack: an opened one, or what `open_haystack` opens (do so once for many samples);
        None for the family's own.
      split: `train` takes other words, names and keys than `test`.
      block: tokens of a block.
      **parameters: of the family's function, instead of those in `FAMILIES`.

    Raises:
      UserError: no such family or parameter, too short a length, or a haystack that says the
        answer by itself wherever one looks.
    """
    if family == "edits":
        made = edit(
            tokenizer, length, seed, depth=depth, haystack=haystack, split=split, block=block,
            **parameters,
        )
        return made.after
    if family not in FAMILIES:
        raise UserError(f"There is no family {family}; take one of {', '.join(NAMES)}.")
    plan, settled, hidden_in = FAMILIES[family]
    setting = _setting(family, tokenizer, length, seed, depth, split, block)
    planned = _call(plan, setting, **{**settled, **parameters})
    return hide(planned, _opened(haystack or hidden_in, setting), setting)._replace(family=family)


def edit(
    tokenizer: Tokenizer,
    length: int,
    seed: int,
    *,
    depth: float | None = None,
    haystack: Haystack | str | None = None,
    split: Split = "test",
    block: int = 32,
    **parameters,
) -> edits.Edit:
    """Documents, the edit of one, and the samples before and after; arguments as in `make`."""
    setting = _setting("edits", tokenizer, length, seed, depth, split, block)
    hay = _opened(haystack or "noise", setting)
    made = _call(edits.edit, setting, haystack=hay, block=block, **parameters)
    return made._replace(
        before=made.before._replace(family="edits"), after=made.after._replace(family="edits")
    )


@functools.lru_cache(maxsize=8)
def encoder_of(tokenizer: Tokenizer) -> Encoder:
    """The encoder of a tokenizer; the same one for the same tokenizer."""
    return Encoder(tokenizer)


def _setting(
    family: str, tokenizer: Tokenizer, length: int, seed: int, depth: float | None, split: Split,
    block: int,
) -> Setting:
    if depth is not None and not 0 <= depth <= 1:
        raise UserError(f"A depth lies between 0 and 1, and {depth} does not.")
    rng = np.random.default_rng([seed, zlib.crc32(family.encode()), split == "train"])
    return Setting(encoder_of(tokenizer), rng, split, prompt_length(length, block), depth, 1)


def _opened(haystack: Haystack | str, setting: Setting) -> Haystack:
    if isinstance(haystack, Haystack):
        return haystack
    return open_haystack(setting.encoder, haystack, setting.split)


def _call(function: Callable, setting: Setting, **parameters):
    known = set(inspect.signature(function).parameters)
    if unknown := sorted(set(parameters) - known):
        raise UserError(
            f"There is no parameter {unknown[0]} here; take one of {', '.join(sorted(known))}."
        )
    return function(setting, **parameters)
