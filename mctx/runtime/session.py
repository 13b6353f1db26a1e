"""The streaming session: tokens in, a tree that grows, a window that does not.

    session = Session(open_checkpoint("data/checkpoints/pico"), tree="runs/history")
    session.ingest("...a book...")
    print(session.generate("Once", tokens=64))

Every K_1 tokens a block is complete: the base reads it in its ingest window, GistNet makes its
gist, the tree takes both. Every `every` blocks the working contexts refocus: lens, allocator,
and the rows that changed are written (law 7). Between refocuses the tail grows.

Where the store fails, what was read stays in memory and is history (storing.py); `length` tells how
far a call came that raised, and another goes on with what is behind that.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from mctx.errors import UserError
from mctx.focus.layout import Dead, FocusConfig, Layout, validate
from mctx.models.attention import NEGATIVE
from mctx.models.router import Routing
from mctx.opened import Opened
from mctx.runtime import (
    deciding,
    decoding,
    focusing,
    following,
    generation,
    growing,
    refocusing,
    saving,
    tailing,
)
from mctx.runtime.ahead import Ahead
from mctx.runtime.assembly import Assembly, GistRows
from mctx.runtime.cache import BlockCache
from mctx.runtime.config import SessionConfig, check, focus_configs
from mctx.runtime.finding import finders_of
from mctx.runtime.ids import ids_of, prompt_ids
from mctx.runtime.lanes import Lanes, lanes_for
from mctx.runtime.memory import room_for
from mctx.runtime.opening import open_history
from mctx.runtime.readiness import Owed, check_end, leave_stream, ready
from mctx.runtime.sampling import Sampling
from mctx.runtime.shelf import Shelf
from mctx.runtime.spending import Spending
from mctx.runtime.staged import Staging
from mctx.runtime.steps import Steps, finish
from mctx.runtime.storing import Storing
from mctx.runtime.watching import Probe, Watch
from mctx.tree.documents import Span
from mctx.tree.head import StoreError
from mctx.tree.ingest import Blocks, Ingest, Reader
from mctx.tree.store import Tree

Worths = Callable[["Session"], np.ndarray]
COMMIT_TOKENS = 2**16  # of a long text that is ingested, between two commits


class Session:
    """One history being read. Not thread-safe; one session writes one tree.

    Args:
      opened: from `open_checkpoint`.
      tree: an open `Tree`, or the URI of one that is opened for writing or created.
      mounts: trees before it, or their URIs, which are only read: a code base, a book.
      reader: shared by sessions of one model, so that its programs are compiled once.
      cache: shared by sessions that look at one tree.
      worths: scores blocks, session -> [blocks] nats; default: the lens, or recency without one.
      on_refocus: called with the session and the telemetry of every refocus; it may look.
      gist_rows: what the base reads for gists, instead of what GistNet made of them (baselines).
      lane: where its rows stand beside those of other sessions (`SessionBatch`); default: alone.
      saved: what `saving.load` read; use `Session.load`.

    Attributes:
      layouts: what lens and allocator want of every head; shown: what stands in the buffers, which
        is another where nodes are cold.
    """

    def __init__(
        self,
        opened: Opened,
        tree: Tree | str | Path,
        config: SessionConfig | None = None,
        reader: Reader | None = None,
        cache: BlockCache | None = None,
        worths: Worths | None = None,
        on_refocus: Callable[[Session, dict], None] | None = None,
        gist_rows: GistRows | None = None,
        lane: tuple[Lanes, int] | None = None,
        mounts: Sequence[Tree | str | Path] = (),
        saved: Callable[[Session], None] | None = None,
    ):
        self.opened, self.config = opened, config or SessionConfig()
        self.model, self.params = opened.model, opened.params
        check(self.config, self.model)
        self.focus, wide = focus_configs(self.model, self.config)
        self.interval = self.config.every * self.model.gist.block
        self.prefix_bias = np.float32(0.0 if self.config.prefix else NEGATIVE)
        self.reader = reader or Reader(self.model, self.params)
        self.tree = open_history(opened, tree, mounts, self.reader)
        self.cache = cache or self._own_cache()
        self.staging = Staging(wide, self.config.staging_every) if wide else None
        self.own_worths, self.own_gists = worths is not None, gist_rows is not None
        self.worths = worths or (None if "lensnet" in self.params else focusing.recency)
        self.on_refocus = on_refocus
        size = self.config, self.focus.budget
        self.lanes, self.lane = lane or (lanes_for(self.model, *size, self.reader.prefix), 0)
        of = self.model, self.params, self.tree, self.cache, self.focus
        self.assembly = Assembly(*of, self.lanes, self.lane, gist_rows)
        self.finding = finders_of(self)
        self.watch, self.probe = Watch(self.focus), Probe(self.config.probe_every)
        self.spending = Spending(self)
        self.storing = Storing(self.tree.own, self.config.unstored)
        self.prefetched: Layout | None = None
        self.shelves: dict[FocusConfig, Shelf] = {}
        self.looks: dict[tuple, tuple] = {}
        self.refocuses, self.ahead = 0, Ahead()
        self.owed = Owed()
        if saved:
            saved(self)
        else:
            self.seek(self.tree.blocks)

    @classmethod
    def load(cls, opened: Opened, tree: str | Path, name: str = "session", **how) -> Session:
        """Goes on exactly where `save` was called, in this process or another.

        Args:
          tree: its URI, which is opened for writing. how: as for a new session; `config` need not
            be given, and must be the one saved if it is.

        Raises:
          UserError: there is no such session, or models, configuration or tree are other ones, or
            the tree has gone on since; nothing is touched then.
        """
        return saving.load(cls, opened, tree, name, how)

    def save(self, name: str = "session") -> None:
        """Commits, and writes what is in memory beside the tree, in place of an older `name`.

        That is atomic: whoever dies meanwhile leaves the older one or the new one.
        """
        ready(self)
        saving.save(self, name)

    @functools.cached_property
    def ingestion(self) -> Ingest:
        """Made when first fed: a session that only looks reads no window twice."""
        pad = self.opened.tokenizer.eot_id if self.opened.tokenizer else 0
        return Ingest(self.reader, self.tree, self.config.every, pad)

    def _own_cache(self):
        c = self.config
        bytes_ = c.cache_bytes, c.device_bytes, c.disk_bytes
        return BlockCache(self.reader, self.tree, *bytes_, c.disk_folder or None)

    # -- history ---------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens of the history, those that wait for their block included."""
        return self.tree.length + len(self.waiting)

    @property
    def waiting(self) -> np.ndarray:
        """Tokens that wait for their block; of a session that was not fed there are none."""
        return self.ingestion.waiting if "ingestion" in vars(self) else np.zeros(0, np.int32)

    def recent(self, count: int) -> np.ndarray:
        """The last tokens of the history, at most `count`; fewer where the store fails."""
        before, stop = np.zeros(0, np.int32), self.tree.length
        with contextlib.suppress(StoreError):
            before = self.tree.tokens(max(0, stop - count), stop)
        return np.concatenate([before, self.waiting])[-count:]

    def ingest(self, text: str | np.ndarray) -> int:
        """Adds text or ids to the history without predicting it, commits; returns tokens added."""
        ready(self, grows=True)
        tokens = ids_of(self.opened, text)
        self.owed.behind = self.owed.adrift = True
        with self.room():
            for blocks in self.ingestion.feed(tokens, self.rows_wanted):
                self.put(blocks)
                if self.storing.waiting >= min(COMMIT_TOKENS, max(1, self.config.unstored)):
                    self.storing.due()
        self.storing.now()
        self.seek(self.tree.blocks)
        return len(tokens)

    @property
    def rows_wanted(self) -> int | None:
        """Of how many tokens that are ingested rows are kept: of as many as there is room for, and
        for finders of all; from an accelerator no more are brought than can be shown."""
        held, shown = self.cache.room * self.model.gist.block, self.config.heads * self.focus.budget
        most = shown + self.config.staging if self.reader.apart else held
        return None if self.finding else min(held, most)

    def put(self, blocks: Blocks) -> None:
        """What ingest made of blocks goes where it will be asked for."""
        if blocks.k is None:
            return
        self.cache.put(blocks)
        if self.finding:
            self.finding.put(blocks)

    def add_document(self, name: str, text: str | np.ndarray) -> Span:
        """Adds a document, which can be replaced as a whole; commits, and focuses anew."""
        ids = ids_of(self.opened, text)
        return following.edited(self, lambda: self.ingestion.add_document(name, ids))

    def replace_document(self, name: str, text: str | np.ndarray) -> Span:
        """Gives a document another text; only the windows that changed are read."""
        ids = ids_of(self.opened, text)
        return following.edited(self, lambda: self.ingestion.replace_document(name, ids))

    def delete_document(self, name: str) -> None:
        """Deletes a document: it is not shown again."""
        following.edited(self, lambda: self.ingestion.delete_document(name))

    def refresh(self) -> bool:
        """Sees what others have committed to the trees that are only read; True if anything."""
        return following.refreshed(self)

    def predict(self, text: str | np.ndarray) -> np.ndarray:
        """Streams tokens through the window and into the tree.

        Returns:
          [n], NLL in nats of each token given all that is shown before it; NaN for the very first
          token of a history.
        """
        nll = self.read_tokens(text)
        self.storing.now()
        return nll

    def generate(self, text: str = "", tokens: int = 64, **how) -> str:
        """Continues the history after `text`.

        how: temperature, top_k, top_p, seed and stop, as `generation.asked` has them.
        """
        return "".join(self.stream(text, tokens, **how))

    def stream(self, text: str = "", tokens: int = 64, **how) -> Iterator[str]:
        """As `generate`, piece by piece.

        Any other use of the session ends the stream; what it has said by then is history.
        """
        ids = prompt_ids(self.opened, text)
        return self._say(ids, generation.stream(self, tokens, **how))

    def prompt(self, text: str | np.ndarray = "") -> None:
        """Reads a text, which may be empty if there is a history, to be continued."""
        ids = prompt_ids(self.opened, text)
        if len(ids):
            self.read_tokens(ids)
        if not (self.has_read or len(tailing.live(self, 1)) or len(self.waiting)):
            raise UserError("there is nothing to continue: give a prompt or ingest text first.")

    def _say(self, ids, pieces):
        self.prompt(ids)
        try:
            yield from pieces
        finally:
            pieces.close()
            self.storing.now()

    def drawn(self, count: int, sampling: Sampling) -> Iterator[int]:
        """Tokens drawn after the last one read, for `generation.stream`."""
        return decoding.drawn(self.line(count, sampling))

    def line(self, count: int, sampling: Sampling) -> decoding.Line:
        """A continuation that any other use of the session ends."""
        ready(self, grows=True)
        check_end(self)
        line = decoding.Line(self, count, sampling)
        # Nothing that a session holds holds it: its memory is free as soon as it is let go.
        self.owed.drawing = weakref.ref(line)
        return line

    # -- focus -----------------------------------------------------------------------------

    def seek(self, blocks: int) -> None:
        """Stands at the end of the first `blocks` blocks and focuses from the coarsest layout."""
        leave_stream(self)
        validate(self.focus, blocks)
        query = self.cache.states(blocks, self.model.lens.query)
        self.stand(blocks, query)
        at = np.int32(blocks), self.dead
        self.layouts: Layout = focusing.on_host(focusing.start, self.focus, self.config.heads, *at)
        self.watch.forget()
        self.probe.forget()
        self.prefetched = None
        if self.staging:
            self.staging.forget()
        self.tail = tailing.empty(self)
        self.assembly.forget_decoded()
        self.refocus()

    def stand(self, blocks: int, query: np.ndarray) -> None:
        """At a block's border of the tree as it is now; query: [L + 1, Q, D]."""
        self.blocks, self.fresh, self.has_read = blocks, 0, False
        self.query = self.query_before = jax.device_put(query, self.reader.where)
        self.owed.behind = self.owed.adrift = False
        self.dead_runs = self.tree.dead
        self.dead = Dead.of(self.dead_runs)

    def place(self, layouts: Layout) -> None:
        """Shows exactly these layouts [H, n], whatever lens and allocator would choose."""
        ready(self)
        self.layouts = self.shown = layouts
        self.assembly.assemble(layouts)
        tailing.clear(self, Routing(self.tail.heads, self.tail.gate))
        self.has_read &= not len(self.waiting)  # as in `refocus`

    def refocus(self) -> dict:
        """Scores, edits, and streams in what changed; returns this refocus's telemetry."""
        leave_stream(self)
        report = finish(self.refocusing(told=True))
        self.has_read &= not len(self.waiting)  # they stood in the tail alone, and are read anew
        return report

    def refocusing(self, told: bool = False) -> Steps[dict]:
        """As `refocus`, in steps; of telemetry that nobody is `told` nothing is made."""
        self.owed.refocus = True
        report = yield from refocusing.refocusing(self, told or self.on_refocus is not None)
        self.refocuses += 1
        self.query_before = self.query
        self.fresh, self.owed.refocus = 0, False
        if self.on_refocus:
            self.owed.telling = True
            try:
                self.on_refocus(self, report)
            finally:
                self.owed.telling = False
        return report

    def lens(self, focus, layouts: Layout, heads: np.ndarray) -> focusing.Scores:
        """What the lens says of some layouts, under the adapters of `heads`."""
        return deciding.lens(self, focus, layouts, heads)

    # -- reading ---------------------------------------------------------------------------

    def peek(self, tokens: np.ndarray) -> np.ndarray:
        """NLL of tokens[1:] behind the present focus, leaving everything as it was: [n - 1]."""
        tokens = ids_of(self.opened, tokens)
        ready(self)
        if len(tokens) < 2:
            return np.zeros(0, np.float32)
        if self.blocks == self.tree.blocks and len(self.waiting):
            tailing.stand_at_end(self)
        return tailing.peek(self, tokens)

    def read_tokens(self, text: str | np.ndarray) -> np.ndarray:
        """As `predict`, without a commit of its own at the end."""
        tokens = ids_of(self.opened, text)
        if not len(tokens):
            return np.zeros(0, np.float32)
        ready(self, grows=True)
        check_end(self)
        with self.room():
            tailing.stand_at_end(self)
            known, nll = self.has_read, []
            while len(tokens):
                piece, tokens = np.split(tokens, [self.due])
                nll += growing.read_through(self, piece)
            nll = np.concatenate([part[:count] for part, count in jax.device_get(nll)])
        nll[:1] = nll[:1] if known else np.nan
        return nll

    @property
    def due(self) -> int:
        """Tokens until the next refocus."""
        return self.interval - self.fresh * self.model.gist.block - len(self.waiting)

    def take(self, tokens: np.ndarray, nll: Iterable[tuple]) -> None:
        """Tokens that stand in the tail, at most `due`, are history: `growing` is owed."""
        self.has_read = self.owed.behind = True
        self.ingestion.add(tokens)
        self.owed.torn = False
        self.probe.saw(tokens, nll)

    def room(self):
        """Around what may ask for more memory than there is."""
        what = "reading behind the working contexts"
        return room_for(what, self.config, "budget", "top", "every")
