"""What may differ from level to level of a tree, and is one number where it does not."""

from collections.abc import Sequence

from mctx.errors import UserError


def for_each_level(value: int | Sequence[int], levels: int, name: str) -> tuple[int, ...]:
    """A number for each level from 1; one number stands for all.

    Raises:
      UserError: there are more or fewer numbers than levels.
    """
    given = (value,) if isinstance(value, int) else tuple(int(each) for each in value)
    every = given * levels if len(given) == 1 else given
    if len(every) != levels:
        raise UserError(
            f"give {name} as one number, or as one for each of the {levels} levels, not {value}."
        )
    return every
