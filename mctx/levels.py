"""What may differ from level to level of a tree, and is one number where it does not."""

import operator
from collections.abc import Sequence

from mctx.errors import UserError


def slots_by_level(slots: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Slots of a gist of each level from 1; one number stands for all.

    Those of every level are a power of two times those of the level with the fewest: so what is
    held and moved in pieces of the fewest, or of the most, holds whole gists (`mctx.tree.mirror`,
    `mctx.runtime.assembly`).

    Raises:
      UserError: that does not hold, or there are more or fewer numbers than levels.
    """
    try:
        given = tuple(map(operator.index, slots if isinstance(slots, Sequence) else (slots,)))
    except TypeError:
        given = ()
    every = given * levels if len(given) == 1 else given
    if len(every) != levels or min(every) < 1:
        raise UserError(
            f"give slots as one whole number from 1 on, or as one for each of the {levels} levels, "
            f"not {slots}."
        )
    if any(each % min(every) or (each // min(every)).bit_count() > 1 for each in every):
        raise UserError(
            f"the slots of every level must be 1, 2, 4, 8, … times the fewest of any, not {slots}."
        )
    return every
