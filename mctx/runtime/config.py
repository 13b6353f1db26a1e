"""How a session focuses."""

from __future__ import annotations

import dataclasses
import math
import numbers
from pathlib import Path

import numpy as np

from mctx.errors import UserError
from mctx.focus.bank import focus_for
from mctx.focus.layout import FocusConfig
from mctx.models.wrapped import Wrapped
from mctx.runtime.buffer import MOST_ROWS

CHOICES = {
    "router": ("static", "utility", "learned"),
    "merger": ("learned", "average"),
    "tail": ("window", "keep", "reread"),
    "cold": ("sync", "async"),
    "decide": ("now", "ahead"),
}
MOST_EDITS = 2**31 - 1  # counted in int32
# Whole numbers, each from its least value on.
LEAST = {
    **dict.fromkeys(("budget", "heads", "top", "every", "max_edits", "capacity"), 1),
    **dict.fromkeys(("staging_every", "staging_capacity", "commit_every"), 1),
    **dict.fromkeys(("sink", "recent", "rounds", "reread", "cooldown", "staging"), 0),
    **dict.fromkeys(("cache_bytes", "device_bytes", "disk_bytes", "unstored", "probe_every"), 0),
}


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """Entries are rows that the base reads.

    Attributes:
      budget: entries of all running heads together; each gets an equal share, which must hold the
        sinks, the recent blocks, and the coarsest gists between (`layout.minimum_budget`).
      heads: working contexts; top: how many of them the base runs on.
      router: 'static', 'utility' or 'learned'; merger: 'learned' or 'average'.
      sink, recent: how many of the first and of the last blocks are always shown as tokens. The
        prefix before them is a sink already, and a first block has gists of every level beside
        it: 168 entries of pico's, for nothing (RESULTS.md).
      every: blocks between refocuses.
      rounds: lens-and-allocator steps in a refocus, a level each; 0 = as many as levels.
      decide: what the lens is told of the present: 'now' as it is at the refocus, which waits for
        it; 'ahead' as it was at the refocus before, so that the decision is made while tokens are
        read.
      tail: 'window' (recent blocks use ingest rows), 'keep' (rows as decoded), or 'reread'
        (the last `reread` tokens are read again under the new layout).
      show: by level from LOD0, whether nodes are shown or silent; () = all that are trained but the
        top level: what covers the far past grows with the history, and the budget does not.
      max_edits, hysteresis, cooldown: see `FocusConfig`.
      capacity: nodes of a layout.
      staging: entries of the staging context, 0 for none; staging_every: blocks between its
        refreshes; staging_capacity: its nodes.
      find: whether the lens is told what its finders find, where it has some: they look over the
        whole history at every refocus, and keep keys of all of it.
      prefix: False hides the shared prefix (only the plain recent window wants that).
      cold: 'sync' waits for what is not in memory; 'async' shows a block's gist, or nothing, until
        its rows are here, and goes on where a store fails.
      cache_bytes: host memory for rows of blocks; device_bytes, disk_bytes: of the accelerator and
        of a scratch file in disk_folder ("": the system's own), 0 for none. A text that is ingested
        on an accelerator leaves there as many rows as can be shown, what is opened adds to them.
      commit_every: refocuses between commits of a streaming session.
      unstored: tokens that may wait in memory for a store that is slow or fails; past that it is
        waited for, or its error raised.
      probe_every: refocuses between two whose gain is measured, by reading the tokens after it
        once more behind the working context as it was before; 0 for none.
    """

    budget: int = 512
    heads: int = 1
    top: int = 1
    router: str = "static"
    merger: str = "average"
    sink: int = 0
    recent: int = 4
    every: int = 1
    rounds: int = 0
    decide: str = "now"
    tail: str = "keep"
    reread: int = 128
    show: tuple[bool, ...] = ()
    max_edits: int = 64
    hysteresis: float = 0.0
    cooldown: int = 0
    capacity: int = 256
    staging: int = 0
    staging_every: int = 8
    staging_capacity: int = 1024
    find: bool = True
    prefix: bool = True
    cold: str = "sync"
    cache_bytes: int = 2**29
    device_bytes: int = 0
    disk_bytes: int = 0
    disk_folder: str = ""
    commit_every: int = 16
    unstored: int = 2**20
    probe_every: int = 0


def check(config: SessionConfig, model: Wrapped) -> None:
    """Refuses settings that mean nothing, each in one sentence (UserError)."""
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}.")
    for name, least in LEAST.items():
        value = getattr(config, name)
        if not isinstance(value, numbers.Integral) or value < least:
            raise UserError(f"{name} must be a whole number from {least} on, not {value!r}.")
    number, show, levels = config.hysteresis, config.show, model.gist.levels
    whole = isinstance(show, tuple | list) and all(isinstance(one, bool | np.bool_) for one in show)
    wants = [
        (
            isinstance(number, numbers.Real) and math.isfinite(number) and number >= 0,
            f"hysteresis must be a finite number from 0 on, not {number!r}.",
        ),
        (isinstance(config.find, bool), f"find must be True or False, not {config.find!r}."),
        (
            show is None or whole and len(show) <= levels + 1,
            f"show must be True or False for each level 0 to {levels}, or (), not {show!r}.",
        ),
        (
            config.max_edits <= MOST_EDITS,
            f"max_edits must be at most {MOST_EDITS}: any from the capacity on is unlimited.",
        ),
        (
            not config.disk_folder or Path(config.disk_folder).is_dir(),
            f"disk_folder {config.disk_folder} is no folder: make it, or name another.",
        ),
        (
            max(model.gist.block, *model.gist.entries) <= MOST_ROWS,
            f"a session keeps apart {MOST_ROWS} rows of a node: give blocks and gists no more.",
        ),
        (1 <= config.top <= config.heads, "top must lie between 1 and the number of heads."),
        (
            config.heads <= model.lens.heads,
            f"this checkpoint's lens has {model.lens.heads} heads: ask for no more.",
        ),
        (
            config.router != "learned" or config.heads == model.lens.heads,
            f"the learned router knows {model.lens.heads} heads: run so many, or another router.",
        ),
        (
            config.tail != "reread"
            or 0 < config.reread <= config.recent * model.gist.block
            and config.reread % model.gist.block == 0,
            f"reread must be whole blocks of {model.gist.block} tokens, inside the recent ones.",
        ),
    ]
    for holds, sentence in wants:
        if not holds:
            raise UserError(sentence)


def focus_configs(model: Wrapped, config: SessionConfig) -> tuple[FocusConfig, FocusConfig | None]:
    """Of one head, with its share of the budget; and of the staging context, if there is one."""
    pace = dict(
        sink=config.sink,
        recent=config.recent,
        max_edits=config.max_edits,
        hysteresis=config.hysteresis,
        cooldown=config.cooldown,
        show=config.show or (True,) * model.gist.levels + (False,),
    )
    head = focus_for(
        model.gist,
        budget=config.budget // config.top,
        capacity=config.capacity,
        headroom=config.every,
        **pace,
    )
    if not config.staging:
        return head, None
    pace["max_edits"] = config.staging_capacity
    wide = focus_for(
        model.gist,
        budget=config.staging,
        capacity=config.staging_capacity,
        headroom=config.staging_every,
        **pace,
    )
    return head, wide
