"""Sessions on disk: what a session has in memory, beside its tree, to go on from exactly.

    session-NAME    megacontext-session FORMAT CRC32 LENGTH, then an npz: `facts` (JSON), arrays

The record lies in the tree's folder, whatever that is stored on, and is written in one atomic
step after a commit. The tree holds the history up to the last whole block; the record holds the
rest: tokens that wait, the tail, the buffers, layouts with their ages, the lens's query, the
staging view, the open ingest window, and the rows of blocks in the cache's memory, which reading
their windows again would remake only up to rounding. (Rows in the cache's disk storey are not
kept, nor those that the device's storey alone held where the host's is full, nor keys of finders
that no cache holds: they are remade so.) The record names models, configuration and tree, and fits
no others.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import uuid
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.layout import Layout
from mctx.opened import Opened, fingerprint
from mctx.runtime.config import SessionConfig
from mctx.runtime.opening import open_mounts
from mctx.runtime.rows import Tail, TailRows
from mctx.runtime.windows import Found
from mctx.tree.arrays import open_kvstore
from mctx.tree.head import IDENTITY, Head, HeadRecord, explained
from mctx.tree.store import Tree

MAGIC, FORMAT = b"megacontext-session", 3
# Settings that decide how fast a session is and how much memory it takes, never what it says.
PACE = {
    *("cache_bytes", "device_bytes", "disk_bytes", "disk_folder"),
    *("commit_every", "unstored", "probe_every"),
}


class Saved(NamedTuple):
    """Attributes:
    facts: models, config, trees, and small numbers of the session. arrays: by name.
    """

    facts: dict
    arrays: dict[str, np.ndarray]


def key_of(name: str) -> str:
    """Of the record in the tree's folder."""
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise UserError(f"a session's name is letters, digits, '-', '_' and '.', not {name!r}.")
    return f"session-{name}"


def save(session, name: str) -> None:
    """Commits the tree and writes the record, which replaces an older one of this name."""
    key, own = key_of(name), session.tree.own
    session.cache.take_up(wait=True)
    session.storing.now()
    if IDENTITY not in own.head.notes:  # a tree of before every one had it
        own.commit(notes=own.head.notes | {IDENTITY: uuid.uuid4().hex})
    record = encode(Saved(_facts(session), _arrays(session)))
    with explained(f"Session {name} of {own.uri} cannot be written"):
        own.kvstore.write(key, record).result()


def exists(uri, name: str) -> bool:
    """Whether there is a record of this name beside the tree."""
    key, kvstore = key_of(name), open_kvstore(uri)
    with explained(f"Session {name} of {uri} cannot be read"):
        return kvstore.read(key).result().state == "value"


def load(kind: Callable, opened: Opened, uri, name: str, how: dict):
    """Makes a session `kind(opened, uri, **how)` that goes on from the record."""
    if isinstance(uri, Tree):
        raise UserError("give the URI of the tree to load a session from, not an open tree.")
    key, kvstore, uri = key_of(name), open_kvstore(uri), str(uri)
    with explained(f"Session {name} of {uri} cannot be read"):
        found = kvstore.read(key).result()
    if found.state != "value":
        raise UserError(f"there is no saved session {name} at {uri}: save one, or begin anew.")
    where = f"session {name} of {uri}"
    saved = decode(found.value, where)
    how["mounts"] = mounts = open_mounts(uri, how.get("mounts", ()))
    head = HeadRecord(kvstore, uri).read()[0]
    how["config"] = _fitting(saved.facts, opened, how, head, [one.head for one in mounts], where)
    return kind(opened, uri, saved=functools.partial(_restore, saved), **how)


# -- what it must fit --------------------------------------------------------------------------


def _facts(session) -> dict:
    own = session.tree.own
    heads = [own.head, *(one.head for one in _mounts(session.tree))]
    return {
        "models": _models(session.opened),
        "config": dataclasses.asdict(session.config),
        "trees": [_standing(head) for head in heads],
        "given": _given(session.own_worths, session.own_gists),
        "blocks": session.blocks,
        "fresh": session.fresh,
        "has_read": bool(session.has_read),
        "refocuses": session.refocuses,
    }


def _fitting(facts, opened, how, head, mounts, where) -> SessionConfig:
    """The configuration to go on with; UserError where anything is another one."""
    config = how.get("config") or SessionConfig(**_tuples(facts["config"]))
    # A setting that an older program did not know was as it is by default.
    before = dataclasses.asdict(SessionConfig()) | facts["config"]
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    other = [name for name in now if name not in PACE and now[name] != before.get(name)]
    trees = [None if one is None else _standing(one) for one in (head, *mounts)]
    given = _given(how.get("worths") is not None, how.get("gist_rows") is not None)
    told = ", ".join(f"{name}={before.get(name)!r}, not {now[name]!r}" for name in other)
    wants = [
        (
            facts["models"] == _models(opened),
            f"{where} was saved with other models: open the checkpoint it was saved with.",
        ),
        (
            not other,
            f"{where} was saved with {told}: give these, or in Python no config, or begin anew.",
        ),
        (
            facts["given"] == given,
            f"{where} was saved with {facts['given']}, not with {given}: give the same.",
        ),
        (
            [one and one["identity"] for one in trees]
            == [one["identity"] for one in facts["trees"]],
            f"{where} was saved beside another tree, or with other mounts: give the same.",
        ),
        (
            trees == facts["trees"],
            f"the tree has gone on since {where} was saved (it holds "
            f"{trees[0] and trees[0]['counts'][0]} tokens now and held "
            f"{facts['trees'][0]['counts'][0]}): begin a new session on it.",
        ),
    ]
    for holds, sentence in wants:
        if not holds:
            raise UserError(sentence)
    return config


def _models(opened: Opened) -> list[str]:
    rest = {name: opened.params[name] for name in ("lensnet", "mof") if name in opened.params}
    return [opened.fingerprint, fingerprint(rest, tuple(rest)), str(opened.model.dtype)]


def _standing(head: Head) -> dict:
    """What a tree's history is, in a few numbers that change when it does."""
    spans = json.dumps(head.documents.spans).encode()
    return {
        "identity": head.notes.get(IDENTITY),
        "counts": [head.count(level) for level in range(head.spec.levels + 1)],
        "edition": head.edition,
        "documents": zlib.crc32(spans),
    }


def _given(worths: bool, gist_rows: bool) -> str:
    names = ["worths"] * worths + ["gist_rows"] * gist_rows
    return " and ".join(names) or "nothing of the caller's"


def _mounts(tree) -> Sequence[Tree]:
    return () if tree.own is tree else tree.mounts


def _tuples(values: dict) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


# -- what it holds -----------------------------------------------------------------------------


def _arrays(session) -> dict[str, np.ndarray]:
    """All arrays, by name, on the host."""
    parts = {
        "layouts": session.layouts._asdict(),
        "shown": session.shown._asdict(),
        "tail": session.tail._replace(rows=None)._asdict() | session.tail.rows._asdict(),
        "assembly": session.assembly.state(),
        "cache": _cached(session),
        "session": {
            "query": np.asarray(session.query),
            "query_before": np.asarray(session.query_before),
        },
    }
    if "ingestion" in session.__dict__:
        parts["ingestion"] = session.ingestion.state()
    if session.staging:
        parts["staging"] = session.staging.state()
    named = {f"{a}/{b}": x for a, each in parts.items() for b, x in each.items() if x is not None}
    return {name: np.asarray(x) for name, x in jax.device_get(named).items()}


def _cached(session) -> dict[str, np.ndarray]:
    held = session.cache.held()
    if not held:
        return {}
    address, k, v = zip(*held, strict=True)
    return {"address": np.array(address, np.int64), "k": np.stack(k), "v": np.stack(v)}


def _restore(saved: Saved, session) -> None:
    """Puts a session that was just made where the saved one stood."""

    def of(part) -> dict[str, np.ndarray]:
        found = saved.arrays.items()
        return {n.removeprefix(f"{part}/"): x for n, x in found if n.startswith(f"{part}/")}

    facts, tail, cached = saved.facts, of("tail"), of("cache")
    query = saved.arrays["session/query"]
    session.stand(facts["blocks"], query)
    query_before = saved.arrays.get("session/query_before", query)
    session.query_before = jax.device_put(query_before, session.reader.where)
    session.fresh, session.has_read = facts["fresh"], facts["has_read"]
    session.refocuses = facts["refocuses"]
    session.layouts, session.shown = Layout(**of("layouts")), Layout(**of("shown"))
    tail = jax.device_put(tail, session.reader.where)
    rows = TailRows(*(tail.pop(name) for name in TailRows._fields))
    session.tail = Tail(rows, **tail)
    session.assembly.restore(of("assembly"))
    session.assembly.stand(session.tail.heads)
    if cached:
        addresses = map(tuple, cached["address"].tolist())
        session.cache.hold(map(Found, addresses, cached["k"], cached["v"]))
    if ingestion := of("ingestion"):
        session.ingestion.restore(ingestion)
    if session.staging:
        session.staging.restore(of("staging"))
    session.watch.saw(session)


# -- the record --------------------------------------------------------------------------------


def encode(saved: Saved) -> bytes:
    """Types that NumPy does not know (bfloat16) are kept as their bits and named in `facts`."""
    types = {name: str(x.dtype) for name, x in saved.arrays.items() if x.dtype.kind == "V"}
    plain = {
        name: x.view(f"u{x.dtype.itemsize}") if name in types else x
        for name, x in saved.arrays.items()
    }
    facts = json.dumps(saved.facts | {"types": types})
    body = io.BytesIO()
    np.savez(body, facts=np.array(facts), **plain)
    data = body.getvalue()
    return b"%s %d %08x %d\n%s" % (MAGIC, FORMAT, zlib.crc32(data), len(data), data)


def decode(record: bytes, where: str) -> Saved:
    """UserError where it is damaged, or of a newer format."""
    line, _, data = record.partition(b"\n")
    try:
        magic, version, checksum, length = line.split(b" ")
        # What a killed writer left of a longer record may stand behind this one (see head.py).
        data, version = data[: int(length)], int(version)
    except ValueError:
        magic = checksum = b""
    if magic != MAGIC or checksum != b"%08x" % zlib.crc32(data):
        raise UserError(f"{where} is damaged: restore it from a copy, or begin anew.")
    if version > FORMAT:
        raise UserError(f"{where} has a newer format than this program reads: update MegaContext.")
    if version < FORMAT:
        raise UserError(f"{where} was saved by an older program: begin a new session on its tree.")
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    facts = json.loads(str(arrays.pop("facts")))
    types = {name: jnp.dtype(kind) for name, kind in facts.pop("types").items()}
    return Saved(facts, {n: x.view(types[n]) if n in types else x for n, x in arrays.items()})

