"""What a session is given to read: text, or token ids."""

from __future__ import annotations

import numpy as np

from mctx.errors import UserError
from mctx.opened import Opened


def ids_of(opened: Opened, text: str | np.ndarray) -> np.ndarray:
    """Token ids of a text, or those given: int32 [n].

    Raises:
      UserError: the text is empty, or ids are none of the vocabulary's; before anything is read.
    """
    if isinstance(text, str):
        tokens = opened.tokenizer.encode(text)
        if not len(tokens):
            raise UserError("the text is empty: give at least one character.")
        return tokens
    ids, size = np.asarray(text), opened.model.base.vocab_size
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"token ids must be whole numbers, not {ids.dtype}.")
    if ids.ndim != 1 or ids.size and not (0 <= ids.min() and ids.max() < size):
        raise UserError(f"token ids must be one row of numbers from 0 to {size - 1}.")
    return ids.astype(np.int32)
