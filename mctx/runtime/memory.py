"""When the machine's memory is full: which setting asked for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from mctx.errors import UserError

FULL = "RESOURCE_EXHAUSTED"


@contextlib.contextmanager
def room_for(what: str, config, *names: str) -> Iterator[None]:
    """Turns an allocation that failed inside into a UserError that names the settings to lower.

    Args:
      what: what there was no memory for. names: fields of `config`, the most telling first.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and FULL not in str(error):
            raise
        settings = " or ".join(f"{name} (now {getattr(config, name)})" for name in names)
        raise UserError(f"there is not enough memory for {what}: lower {settings}.") from error
