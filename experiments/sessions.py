"""What those who run a session share: opening by item, room for what is to come, what it chose."""

from pathlib import Path

import numpy as np

from mctx import checkpoint
from mctx.focus.layout import FocusConfig, coarsest, minimum_budget, validate
from mctx.models.wrapped import Wrapped
from mctx.opened import Opened, fingerprint
from mctx.runtime import Session

AT_ONCE = 2**16  # lengths that are looked at together


def open_for_ids(directory: str | Path, items: tuple[str, ...]) -> Opened:
    """As `open_checkpoint`, for token ids only: without a tokenizer, which an import may lack."""
    params, config = checkpoint.load_items(directory, items)
    return Opened(Wrapped.from_dict(config), params, None, fingerprint(params), config)


def ensure_room(focus: FocusConfig, first: int, last: int) -> None:
    """Refuses a budget or capacity that some history of `first` to `last` blocks outgrows.

    What sinks, recent blocks and the coarsest cover cost does not only grow with the history, so
    every length is looked at. UserError says what to change (`mctx.focus.layout.validate`).
    """
    validate(focus, last)
    for start in range(first, last + 1, AT_ONCE):
        lengths = np.arange(start, min(start + AT_ONCE, last + 1))
        rows = np.asarray(coarsest(focus, lengths)[2]).sum(axis=0)
        for cost in (minimum_budget(focus, lengths), rows):
            validate(focus, int(lengths[np.argmax(cost)]))


def far_detail(session: Session) -> np.ndarray:
    """Blocks that the first head shows as tokens because they were chosen, rising."""
    shown, focus = session.shown, session.focus
    live = slice(0, int(shown.count[0]))
    level, index = (np.asarray(x[0][live]) for x in (shown.level, shown.index))
    detail = index[(level == 0) & np.asarray(shown.shown[0][live])]
    return detail[(detail >= focus.sink) & (detail < session.blocks - focus.recent)]
