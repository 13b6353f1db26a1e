"""The streaming session: tokens in, a tree that grows, a window that does not.

    session = Session(open_checkpoint("data/checkpoints/pico"), tree="runs/history")
    session.ingest("...a book...")
    print(session.generate("Once", tokens=64))

Every K_1 tokens a block is complete: the base reads it in its ingest window, GistNet makes its
gist, the tree takes both. Every `every` blocks the working contexts refocus: lens, allocator,
and the rows that changed are written (law 7). Between refocuses the tail grows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mctx.errors import UserError
from mctx.focus.layout import Dead, Layout, validate
from mctx.models.attention import NEGATIVE
from mctx.models.router import Routing
from mctx.opened import Opened
from mctx.runtime import focusing, generation, reading
from mctx.runtime.assembly import Assembly, Decoded, GistRows
from mctx.runtime.cache import BlockCache
from mctx.runtime.config import SessionConfig, check, focus_configs
from mctx.runtime.opening import open_history
from mctx.runtime.reading import Tail
from mctx.runtime.spending import Spending
from mctx.runtime.staged import Staging
from mctx.runtime.watching import Probe, Watch
from mctx.tree.documents import Span, last_live
from mctx.tree.ingest import Ingest, Reader
from mctx.tree.store import Tree

Worths = Callable[["Session"], np.ndarray]


class Session:
    """One history being read. Not thread-safe; one session writes one tree.

    Args:
      opened: from `open_checkpoint`.
      tree: an open `Tree`, or the URI of one that is opened for writing or created.
      mounts: trees before it, or their URIs, which are only read: a code base, a book.
      reader: shared by sessions of one model, so that its programs are compiled once.
      cache: shared by sessions that look at one tree.
      worths: scores blocks instead of the lens: session -> [blocks] nats (baselines, hindsight).
      on_refocus: called with the session and the telemetry of every refocus.
      gist_rows: what the base reads for gists, instead of what GistNet made of them (baselines).
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
        mounts: Sequence[Tree | str | Path] = (),
    ):
        self.opened, self.config = opened, config or SessionConfig()
        self.model, self.params = opened.model, opened.params
        check(self.config, self.model)
        self.reader = reader or Reader(self.model, self.params)
        self.tree = open_history(opened, tree, mounts, self.reader)
        self.cache = cache or BlockCache(self.reader, self.tree, self.config.cache_bytes)
        self.focus, wide = focus_configs(self.model, self.config)
        self.staging = Staging(wide, self.config.staging_every) if wide else None
        self.worths, self.on_refocus = worths, on_refocus
        self.assembly = Assembly(
            self.model,
            self.params,
            self.tree,
            self.cache,
            self.focus,
            self.config.heads,
            self.reader.prefix,
            gist_rows,
        )
        self.watch, self.probe = Watch(self.focus), Probe(self.config.probe_every)
        self.spending = Spending(self)
        self.refocuses = 0
        self.prefix_bias = np.float32(0.0 if self.config.prefix else NEGATIVE)
        self._interval = self.config.every * self.model.gist.block
        self.seek(self.tree.blocks)

    @functools.cached_property
    def ingestion(self) -> Ingest:
        """Made when first fed: a session that only looks reads no window twice."""
        pad = self.opened.tokenizer.eot_id
        return Ingest(self.reader, self.tree, self.config.every, pad)

    # -- history ---------------------------------------------------------------------------

    def ingest(self, text: str | np.ndarray) -> int:
        """Adds text or ids to the history without predicting it, commits; returns tokens added."""
        tokens = self._ids(text)
        for blocks in self.ingestion.feed(tokens):
            self.cache.put(blocks)
        self.tree.commit()
        self.seek(self.tree.blocks)
        return len(tokens)

    def add_document(self, name: str, text: str | np.ndarray) -> Span:
        """Adds a document, which can be replaced as a whole; commits, and focuses anew."""
        return self._edit(lambda: self.ingestion.add_document(name, self._ids(text)))

    def replace_document(self, name: str, text: str | np.ndarray) -> Span:
        """Gives a document another text; only the windows that changed are read."""
        return self._edit(lambda: self.ingestion.replace_document(name, self._ids(text)))

    def delete_document(self, name: str) -> None:
        """Deletes a document: it is not shown again."""
        self._edit(lambda: self.ingestion.delete_document(name))

    def _edit(self, edit):
        marks = self.assembly.marks()
        try:
            made = edit()
            self.tree.commit()
        finally:
            self._follow(marks)
        return made

    def refresh(self) -> bool:
        """Sees what others have committed to the trees that are only read; True if anything."""
        marks = self.assembly.marks()
        changed = self.tree.refresh()
        if changed:
            self._follow(marks)
        return changed

    def _follow(self, marks):
        """The tree has changed: what was made from replaced rows is dropped."""
        self.assembly.forget_changed(marks)
        self.seek(self.tree.blocks)

    def predict(self, text: str | np.ndarray) -> np.ndarray:
        """Streams tokens through the window and into the tree.

        Returns:
          [n], NLL in nats of each token given all that is shown before it; NaN for the very first
          token of a history.
        """
        nll = self.read_tokens(self._ids(text))
        self.tree.commit()
        return nll

    def generate(self, text: str = "", tokens: int = 64, **how) -> str:
        """Continues the history after `text`; `how`: see `generation.stream`."""
        return "".join(self.stream(text, tokens, **how))

    def stream(self, text: str = "", tokens: int = 64, **how) -> Iterator[str]:
        """As `generate`, piece by piece."""
        if text:
            self.read_tokens(self._ids(text))
        if not (self._has_read or self.blocks or len(self.ingestion.waiting)):
            raise UserError("there is nothing to continue: give a prompt or ingest text first.")
        self._stand_at_end()
        yield from generation.stream(self, tokens, **how)
        self.tree.commit()

    def _ids(self, text):
        if not isinstance(text, str):
            return np.asarray(text, np.int32)
        tokens = self.opened.tokenizer.encode(text)
        if not len(tokens):
            raise UserError("the text is empty: give at least one character.")
        return tokens

    # -- focus -----------------------------------------------------------------------------

    def seek(self, blocks: int) -> None:
        """Stands at the end of the first `blocks` blocks and focuses from the coarsest layout."""
        validate(self.focus, blocks)
        self.blocks, self._fresh, self._has_read = blocks, 0, False
        self.dead_runs = self.tree.dead
        self.dead = Dead.of(self.dead_runs)
        self.query = self.cache.states(blocks, self.model.lens.query)
        heads, top = self.config.heads, self.config.top
        coarsest = focusing.start(self.focus, heads, np.int32(blocks), self.dead)
        self.layouts: Layout = jax.device_get(coarsest)
        self.watch.forget()
        self.probe.forget()
        if self.staging:
            self.staging.forget()
        size = self._interval + (self.config.reread if self.config.tail == "reread" else 0)
        self.tail = Tail(
            reading.empty_rows(self.model, top, size),
            np.int32(0),
            jnp.zeros(self.model.base.d_model),
            *Routing(np.arange(top, dtype=np.int32), np.zeros(top, np.float32)),
        )
        self.refocus()

    def place(self, layouts: Layout) -> None:
        """Shows exactly these layouts [H, n], whatever lens and allocator would choose."""
        self.layouts = layouts
        self.assembly.assemble(layouts)
        self._clear_tail(Routing(self.tail.heads, self.tail.gate))

    def refocus(self) -> dict:
        """Scores, edits, and streams in what changed; returns this refocus's telemetry."""
        began = time.perf_counter()
        gained = self.probe.gained(self)
        edits = []
        score = self._scorer()
        for _ in range(self.config.rounds or self.focus.levels):
            scores, scored = score(), self.layouts
            at = np.int32(self.blocks), np.int32(self.refocuses)
            self.layouts, done = jax.device_get(
                focusing.edit(self.focus, self.layouts, scores, *at, self.dead)
            )
            edits.append(done)
            if np.any(done.spent > self.focus.budget):
                validate(self.focus, self.blocks)  # says what has outgrown what
            if not np.any(done.expanded | done.collapsed | done.forced):
                break  # a fixed point: the same scores would choose nothing again
        decided = time.perf_counter()
        focusing.prefetch(self.tree, self.layouts)
        again = self._live(self.config.reread // self.model.gist.block)
        again = again if self.config.tail == "reread" else again[:0]
        before = again[0] if len(again) else None
        self.probe.remember(self)
        written = self.assembly.assemble(self.layouts, self._decoded(), before)
        self._clear_tail(self._route(scored, scores))
        if len(again):
            self._read_behind(self._tokens_of(again))
        milliseconds = 1e3 * (decided - began), 1e3 * (time.perf_counter() - decided)
        report = self.watch.report(self, scored, scores, edits, written, milliseconds)
        report |= gained | self.spending.since_last(written.gists)
        self.refocuses += 1
        self._fresh = 0
        if self.on_refocus:
            self.on_refocus(self, report)
        return report

    def _scorer(self) -> Callable[[], focusing.Scores]:
        """What scores the layouts as they stand, nats of the best block: the lens, or `worths`.

        What a refocus looks at once and for all (a table of worths, the staging view) is here.
        """
        if self.worths:
            table = np.array(self.worths(self))
            for start, stop in self.dead_runs:
                table[..., start:stop] = 0.0
            return lambda: focusing.table_scores(self.focus, self.layouts, table)
        heads = np.arange(self.config.heads)
        if not self.staging:
            return lambda: self.lens(self.focus, self.layouts, heads)
        self.staging.refresh(self)
        found = self.staging.look(self)
        return lambda: self.staging.inform(
            self, self.lens(self.focus, self.layouts, heads), found
        )

    def lens(self, focus, layouts: Layout, heads: np.ndarray) -> focusing.Scores:
        self.spending.scored(focus, len(heads))
        gather = focusing.gatherer(self.tree)
        return focusing.lens_scores(
            self.model,
            self.params,
            focus,
            layouts,
            gather,
            self.query,
            self.blocks,
            heads,
            self.dead_runs,
        )

    def _route(self, layouts, scores):
        """The heads that the base will run on until the next refocus, and the merger's gate."""
        c, stats = self.config, focusing.head_statistics(layouts, scores.own)
        return reading.routed(self.model, c.router, c.top, self.params, self.query, stats)

    def _decoded(self):
        """Blocks whose rows stand in the tail, if the policy is to keep them."""
        if self.config.tail != "keep":
            return None
        count = int(self.tail.length) // self.model.gist.block
        if not count:
            return None
        return Decoded(self.blocks - count, count, self.tail)

    # -- reading ---------------------------------------------------------------------------

    def peek(self, tokens: np.ndarray) -> np.ndarray:
        """NLL of tokens[1:] behind the present focus, leaving everything as it was: [n - 1]."""
        nll = reading.peek(
            self.model,
            self.config.merger == "learned",
            self.params,
            self.assembly.buffer,
            self.tail,
            np.asarray(tokens, np.int32),
            self.prefix_bias,
        )
        return np.asarray(nll)

    def read_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """As `predict`, for ids, without a commit of its own at the end."""
        if not len(tokens):
            return np.zeros(0, np.float32)
        if self.blocks != self.tree.blocks:
            raise UserError("the session stands inside its history: seek its end before reading.")
        self._stand_at_end()
        known = self._has_read
        nll = []
        while len(tokens):
            due = self._interval - self._fresh * self.model.gist.block
            piece, tokens = np.split(tokens, [due - len(self.ingestion.waiting)])
            read = self._read_behind(piece)
            self.probe.saw(piece, read)
            nll += read
            self._observe(self.ingestion.feed(piece))
        nll = np.concatenate([part[:count] for part, count in jax.device_get(nll)])
        nll[:1] = nll[:1] if known else np.nan
        return nll

    def _stand_at_end(self):
        """After `seek`, what the last tokens say is read once, so that the next can be predicted.

        The last block is taken out of the buffer for that, read behind the rest, and put back as
        the tail policy has it; tokens that wait for their block are read after it.
        """
        if self._has_read or not (self.blocks or len(self.ingestion.waiting)):
            return
        last = self._live(1)
        if len(last) and self.config.tail != "reread":
            self.assembly.assemble(self.layouts, before=last[0])
            self._read_behind(self._tokens_of(last))
            self.assembly.assemble(self.layouts)
            self._clear_tail(Routing(self.tail.heads, self.tail.gate))
        if len(self.ingestion.waiting):
            self._read_behind(self.ingestion.waiting)

    def _live(self, count):
        """The last blocks that are not dead, rising."""
        return last_live(self.dead_runs, self.blocks, count)

    def _tokens_of(self, blocks):
        block = self.model.gist.block
        return np.concatenate([self.tree.tokens(b * block, (b + 1) * block) for b in blocks])

    def _observe(self, made):
        """Complete blocks: rows to the cache, states to the query, a node each; then refocus."""
        for blocks in made:
            self.cache.put(blocks)
            recent = np.concatenate([self.query, blocks.states], axis=1)
            self.query = recent[:, -self.model.lens.query :]
        fresh, self.blocks = self.tree.blocks - self.blocks, self.tree.blocks
        if fresh:
            self._fresh += fresh
            at = np.int32(self.blocks), np.int32(fresh), np.int32(self.refocuses)
            longer = focusing.append(self.focus, self.layouts, *at, self.dead)
            self.layouts = jax.device_get(longer)
        if self._fresh >= self.config.every:
            self.refocus()
            if self.refocuses % self.config.commit_every == 0:
                self.tree.commit(wait=False)

    def _read_behind(self, tokens):
        """Reads tokens into the tail, in calls of two fixed sizes.

        Returns:
          A call's NLL, still on the device, and how many of it are real; one pair a call.
        """
        out = []
        for at in range(0, len(tokens), self._interval):
            piece = tokens[at : at + self._interval]
            size = 1 if len(piece) == 1 else self._interval
            self.tail, nll = reading.extend(
                self.model,
                self.config.merger == "learned",
                self.params,
                self.assembly.buffer,
                self.tail,
                np.pad(piece, (0, size - len(piece))).astype(np.int32),
                np.int32(len(piece)),
                self.prefix_bias,
            )
            out.append((nll, len(piece)))
            self.spending.read(size)
        self._has_read |= len(tokens) > 0
        return out

    def _clear_tail(self, routing: Routing):
        """Forgets the tail's rows; what was read last still predicts the next token."""
        self.tail = self.tail._replace(length=np.int32(0), heads=routing.heads, gate=routing.gate)
