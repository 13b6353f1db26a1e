"""Tokens drawn one after another behind a session's working contexts.

Each is one call of one compiled step, which draws a token and reads it, and hands the next step
what it needs on the device. So many steps are under way that the device never waits inside a
block: the host learns a token while the next one is being made. What turns out to lie past the
end (a stop string, the end of the text, a reader who leaves) is forgotten: rows past the tail's
length are not read by anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import jax
import numpy as np

from mctx.runtime import reading, tailing
from mctx.runtime.sampling import Sampling

AHEAD = 2  # steps under way behind the one whose token is waited for


def drawn(session, count: int, sampling: Sampling) -> Iterator[int]:
    """Up to `count` tokens, or to the end of the text; what was handed out is history.

    Pieces end where a refocus is due; between two of them the host waits for nothing.
    """
    with session.room():
        tailing.stand_at_end(session)
        yield from _pieces(session, count, sampling)


def _pieces(session, count, sampling) -> Iterator[int]:
    key, eot, number = jax.random.key(sampling.seed), session.opened.tokenizer.eot_id, 0
    while number < count:
        before, said, handed = session.tail._replace(rows=None), [], []
        steps = min(session.due, count - number)
        try:
            for token in _steps(session, said, steps, key, number, sampling):
                if token == eot:
                    return
                handed.append(token)
                yield token
        finally:
            _keep(session, before, said, handed)
        number += len(handed)


def _steps(session, said, steps, key, number, sampling) -> Iterator[int]:
    """Dispatches steps, fills `said`, and yields their tokens some steps later."""
    static = session.model, session.config.merger == "learned", sampling.kind
    settings, waiting = reading.settings_of(sampling), deque()
    for i in range(steps):
        session.tail, one = reading.say(
            *static,
            session.params,
            session.assembly.buffer,
            session.tail.rows,
            session.tail._replace(rows=None),
            key,
            np.int32(number + i),
            settings,
            session.prefix_bias,
        )
        one.token.copy_to_host_async()
        session.spending.read(1)
        said.append(one)
        waiting.append(one.token)
        if len(waiting) > AHEAD:
            yield int(waiting.popleft())
    yield from map(int, waiting)


def _keep(session, before, said, handed) -> None:
    """Takes the tokens that were handed out into the history, and forgets those behind them."""
    if len(handed) < len(said):
        last = said[len(handed) - 1].last if handed else before.last
        length = before.length + np.int32(len(handed))
        session.tail = session.tail._replace(length=length, last=last)
    if handed:
        tokens = np.array(handed, np.int32)
        session.take(tokens, [(one.nll, 1) for one in said[: len(handed)]])
