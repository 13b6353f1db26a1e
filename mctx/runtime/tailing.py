"""The tail of a session: tokens read behind its working contexts since the last refocus."""

from __future__ import annotations

import jax
import numpy as np

from mctx.models.router import Routing
from mctx.runtime import reading, rows
from mctx.runtime.assembly import Decoded
from mctx.runtime.rows import Tail
from mctx.sharding import numbers_to, put
from mctx.tree.documents import last_live


def empty(session) -> Tail:
    """Room for what is read until the next refocus, and for what a policy reads again."""
    config, top, where = session.config, session.config.top, session.reader.where
    size = session.interval + (config.reread if config.tail == "reread" else 0)
    last = np.zeros(session.model.base.d_model, np.float32)
    routing = Routing(np.arange(top, dtype=np.int32), np.zeros(top, np.float32))
    rest = jax.device_put((np.int32(0), last, *routing), where)
    return Tail(rows.empty_tail_rows(session.model, top, size, where), *rest)


def clear(session, routing: Routing) -> None:
    """The routed heads stand on what was assembled, and the tail's rows are forgotten; what was
    read last still predicts the next token."""
    session.assembly.stand(routing.heads)
    fields = dict(length=np.int32(0), heads=routing.heads, gate=routing.gate)
    session.tail = changed(session, session.tail, **fields)


def changed(session, tail: Tail, **fields) -> Tail:
    """A tail with some fields others: on the device, as those that a program has made."""
    where = session.reader.where
    known = {name: x for name, x in fields.items() if not isinstance(x, jax.Array)}
    made = {name: x for name, x in fields.items() if name not in known}
    return tail._replace(**put(made, where), **numbers_to(where)(known))


def read(session, tokens: np.ndarray) -> list[tuple]:
    """Reads tokens into the tail, in calls of two fixed sizes.

    Returns:
      A call's NLL, still on the device, and how many of it are real; one pair a call.
    """
    out = []
    for at in range(0, len(tokens), session.interval):
        piece = tokens[at : at + session.interval]
        size = 1 if len(piece) == 1 else session.interval
        session.tail, nll = reading.extend(
            session.model,
            session.config.merger == "learned",
            session.params,
            session.assembly.buffer,
            session.tail,
            np.pad(piece, (0, size - len(piece))).astype(np.int32),
            np.int32(len(piece)),
            session.prefix_bias,
        )
        out.append((nll, len(piece)))
        session.spending.read(size)
    return out


def peek(session, tokens: np.ndarray) -> np.ndarray:
    """NLL of tokens[1:] behind what is shown and the tail, which stays as it is: [n - 1]."""
    learned, behind = session.config.merger == "learned", session.assembly.buffer
    of = session.model, learned, session.params, behind, session.tail
    return np.asarray(reading.peek(*of, tokens, session.prefix_bias))


def stand_at_end(session) -> None:
    """After `seek`, what the last tokens say is read once, so that the next can be predicted.

    The last block is taken out of the buffer for that, read behind the rest, and put back as
    the tail policy has it, where the policy has not read it again already; tokens that wait for
    their block are read after it.
    """
    waiting = session.ingestion.waiting
    if session.has_read or not (session.blocks or len(waiting)):
        return
    last = live(session, 1)
    if len(last) and not int(session.tail.length):
        session.owed.adrift = True  # until the buffers hold again what is shown
        tokens = tokens_of(session, last)
        session.assembly.assemble(session.shown, decoded(session), before=last[0])
        clear(session, Routing(session.tail.heads, session.tail.gate))
        read(session, tokens)
        session.assembly.assemble(session.shown, decoded(session))
        clear(session, Routing(session.tail.heads, session.tail.gate))
        session.owed.adrift = False
    if len(waiting):
        read(session, waiting)
    session.has_read = bool(len(last) or len(waiting))


def decoded(session) -> Decoded | None:
    """Blocks whose rows stand in the tail, if the policy is to keep them; without any, those that
    were kept before stay."""
    if session.config.tail != "keep":
        return None
    count = int(session.tail.length) // session.model.gist.block
    return Decoded(session.blocks - count, count, session.tail)


def renewed(session) -> bool:
    """Where a reading that failed has used up the tail, or left there what is no history, it begins
    anew, and the last tokens will be read again (`stand_at_end`); True where blocks stood in it
    alone, for a refocus to show."""
    if not (session.owed.torn or session.tail.last.is_deleted()):
        return False
    session.tail, session.has_read, session.owed.torn = empty(session), False, False
    return session.fresh > 0 or session.config.tail == "reread"


def live(session, count: int) -> np.ndarray:
    """The last blocks that are not dead, rising."""
    return last_live(session.dead_runs, session.blocks, count)


def tokens_of(session, blocks: np.ndarray) -> np.ndarray:
    block = session.model.gist.block
    return np.concatenate([session.tree.tokens(b * block, (b + 1) * block) for b in blocks])
