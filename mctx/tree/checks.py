"""What may be asked of a tree and added to it; everything else is a sentence."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from mctx.tree import arrays as stored
from mctx.tree.head import TreeError, TreeSpec
from mctx.tree.state import Change, State

MAX_BLOCKS = 2**31  # a node's index is an int32 on the device
AT_ONCE = 2**10  # gists looked at together: what fits the processor's cache


def level(uri: str, spec: TreeSpec, asked: int, lowest: int) -> None:
    if not lowest <= asked <= spec.levels:
        raise TreeError(
            f"Level {asked} was asked of {uri}, which has {lowest} to {spec.levels}."
        )


def changes(uri: str, state: State, wanted: Sequence[Change]) -> list[Change]:
    """Changes with values as stored, when all of them fit the tree."""
    spec = state.head.spec
    counts = [state.rows(one) for one in range(spec.levels + 1)]
    made = []
    for change in wanted:
        level(uri, spec, change.level, lowest=0)
        values = change.values
        if values is not None:
            values = (_bits if change.level else _tokens)(uri, spec, change)
        if not 0 <= change.start <= counts[change.level]:
            raise TreeError(
                f"Rows from {change.start} on of level {change.level} do not follow the "
                f"{counts[change.level]} that {uri} holds."
            )
        end = change.start + change.length
        counts[change.level] = max(counts[change.level], end)
        made.append(change._replace(values=values))
    _counts(uri, spec, counts)
    return made


def room(uri: str, spec: TreeSpec, length: int) -> None:
    """Whether so many tokens can be counted."""
    if length > MAX_BLOCKS * spec.fanouts[0]:
        raise TreeError(
            f"{uri} would pass 2**31 blocks, the most a tree can hold; start another."
        )


def _counts(uri: str, spec: TreeSpec, counts: Sequence[int]) -> None:
    room(uri, spec, counts[0])
    for one in range(1, spec.levels + 1):
        most = counts[0] // spec.span(one)
        if counts[one] > most:
            raise TreeError(
                f"{counts[one]} gists of level {one} were appended to {counts[0]} tokens, "
                f"which make {most} complete nodes."
            )


def _tokens(uri: str, spec: TreeSpec, change: Change) -> np.ndarray:
    tokens = np.asarray(change.values)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise TreeError(f"Tokens must be integers [n], not {tokens.dtype} {list(tokens.shape)}.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < spec.vocab_size:
        raise TreeError(
            f"Tokens {tokens.min()} to {tokens.max()} do not fit the tree's vocabulary of "
            f"{spec.vocab_size}; use the tokenizer that it was made with."
        )
    return tokens


def _bits(uri: str, spec: TreeSpec, change: Change) -> np.ndarray:
    values = np.asarray(change.values)
    shape = stored.row_shape(spec, change.level)
    if values.shape[1:] != shape or not values.ndim:
        raise TreeError(
            f"Gists of level {change.level} must be [m, {shape[0]}, {shape[1]}], "
            f"not {list(values.shape)}."
        )
    constant = values.dtype == ml_dtypes.bfloat16 and not values.flags.writeable
    bits = values.view(np.uint16) if constant else stored.to_bits(values)
    if any(_not_finite(bits[at : at + AT_ONCE]) for at in range(0, len(bits), AT_ONCE)):
        raise TreeError(
            f"Gists of level {change.level} hold NaN or infinity and would stay so."
        )
    return bits


def _not_finite(bits: np.ndarray) -> bool:
    return bool(((bits & 0x7F80) == 0x7F80).any())  # an exponent of ones
