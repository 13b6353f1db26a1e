"""What a session is given to read: text, or token ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mctx.errors import UserError
from mctx.opened import Opened


def ids_of(opened: Opened, text: str | np.ndarray) -> np.ndarray:
    """Token ids of a text, or those given: int32 [n].

    Raises:
      UserError: the text is empty, neither text nor ids, or ids are none of the vocabulary's;
        before anything is read.
    """
    if isinstance(text, str):
        tokens = opened.tokenizer.encode(text)
        if not len(tokens):
            raise UserError("the text is empty: give at least one character.")
        return tokens
    if not hasattr(text, "__len__") or isinstance(text, bytes | Mapping):
        raise UserError(f"give text or a row of token ids, not {type(text).__name__}.")
    try:
        ids, size = np.asarray(text), opened.model.base.vocab_size
    except ValueError as error:  # rows of several lengths
        raise UserError("token ids must be one row of numbers.") from error
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"token ids must be whole numbers, not {ids.dtype}.")
    if ids.ndim != 1 or ids.size and not (0 <= ids.min() and ids.max() < size):
        raise UserError(f"token ids must be one row of numbers from 0 to {size - 1}.")
    return ids.astype(np.int32)


def prompt_ids(opened: Opened, text: str | np.ndarray) -> np.ndarray:
    """As `ids_of`, for a text that may be empty."""
    return np.zeros(0, np.int32) if isinstance(text, str) and not text else ids_of(opened, text)
