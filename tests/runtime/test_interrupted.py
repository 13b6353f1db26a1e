"""Whatever ends a call half way, an interrupt too: what was read is history, all of it and once,
and the next call stands where this one would have."""

import contextlib
import dataclasses

import numpy as np
import pytest

from mctx.errors import UserError
from mctx.focus import layout
from mctx.runtime import SessionBatch, reading, tailing
from mctx.runtime.ahead import Ahead
from mctx.tree.head import StoreError
from tests.runtime.small import BLOCK, CONFIG, WINDOW, opened, place, reader, session, text, worths

KEEP = dataclasses.replace(CONFIG, tail="keep")
ASKED = text(9, seed=5)


def fails_once(monkeypatch, owner, name, error, at=0, after=False):
    """The call number `at` of a function raises, before or after it has done its work."""
    plain, calls = getattr(owner, name), iter(range(10**6))

    def failing(*arguments, **named):
        now = next(calls) == at
        if now and not after:
            raise error
        made = plain(*arguments, **named)
        if now:
            raise error
        return made

    monkeypatch.setattr(owner, name, failing)


def same(made, other):
    """They stand alike and go on alike."""
    assert made.length == other.length
    np.testing.assert_allclose(made.peek(ASKED), other.peek(ASKED), atol=2e-5)
    np.testing.assert_allclose(made.predict(ASKED), other.predict(ASKED), atol=2e-5)


@pytest.mark.parametrize("tail", ["window", "keep"])
def test_tokens_that_were_read_when_an_interrupt_came_are_history_once(tail, monkeypatch):
    config = dataclasses.replace(CONFIG, tail=tail, decide="ahead")
    history, more = text(6 * WINDOW + 1, seed=3), text(2, seed=11)
    for when in range(3):
        made, other = session(config), session(config)
        for one in made, other:
            one.predict(history)
        with monkeypatch.context() as patch:
            fails_once(patch, Ahead, "think", KeyboardInterrupt(), at=when)
            with contextlib.suppress(KeyboardInterrupt):
                made.predict(more)
        made.peek(ASKED)  # whatever was left undone is done
        before = len(history)
        rest = more[made.length - before :]
        made.predict(rest)
        other.predict(more)
        assert int(made.tail.length) == made.length % BLOCK
        same(made, other)


def test_a_reading_that_is_interrupted_leaves_nothing_in_the_tail_that_is_no_history(monkeypatch):
    made, other = session(), session()
    for one in made, other:
        one.predict(text(6 * WINDOW + 1, seed=3))
    with monkeypatch.context() as patch:
        fails_once(patch, tailing, "read", KeyboardInterrupt(), after=True)
        with pytest.raises(KeyboardInterrupt):
            made.predict(text(2, seed=11))
    same(made, other)


@pytest.mark.parametrize("config", [CONFIG, KEEP])
@pytest.mark.parametrize("what", ["tokens", "rows"])
def test_a_last_block_that_could_not_be_read_again_is_read_with_the_next_use(
    config, what, monkeypatch
):
    made, other = (session(config, worths=worths(1)) for _ in "ab")
    for one in made, other:
        one.ingest(text(6 * WINDOW, seed=3))
    with monkeypatch.context() as patch:
        owner, name, at = (
            (tailing, "tokens_of", 0) if what == "tokens" else (made.cache, "fetch", 1)
        )
        fails_once(patch, owner, name, StoreError("no route"), at)
        with pytest.raises(StoreError):
            made.predict(ASKED)
    same(made, other)


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_was_said_when_an_interrupt_came_is_history(lanes, monkeypatch):
    batch = SessionBatch(
        opened(), [place() for _ in range(lanes)], dataclasses.replace(CONFIG, every=4), reader()
    )
    for one in batch.sessions:
        one.predict(text(34, seed=1))
    said = [""] * lanes
    with monkeypatch.context() as patch:
        fails_once(patch, reading, "say", KeyboardInterrupt(), at=8, after=True)
        with pytest.raises(KeyboardInterrupt):
            for which, piece in batch.stream([dict(tokens=14, temperature=3.0)] * lanes):
                said[which] += piece
    assert any(said)
    for one, heard in zip(batch.sessions, said, strict=True):
        one.peek(ASKED)
        grown = opened().tokenizer.decode(one.recent(one.length - 34)) if one.length > 34 else ""
        assert grown.startswith(heard)


def test_the_query_knows_a_block_whose_rows_could_not_be_held(monkeypatch):
    made, other = session(), session()
    for one in made, other:
        one.predict(text(6 * WINDOW, seed=3))
    with monkeypatch.context() as patch:
        fails_once(patch, made.cache, "put", ValueError("no"))
        with pytest.raises(ValueError):
            made.predict(text(BLOCK, seed=11))
    other.predict(text(BLOCK, seed=11))
    made.peek(ASKED)
    np.testing.assert_array_equal(made.query, other.query)


def test_an_ingest_that_failed_behind_fresh_blocks_never_shows_an_unlawful_layout(monkeypatch):
    config = dataclasses.replace(KEEP, every=4, recent=4, capacity=18)
    made, seen = session(config, worths=worths(1)), []
    made.predict(text(16 * 5 + 12, seed=1))
    assert made.fresh == 3
    with monkeypatch.context() as patch:
        fails_once(patch, made.cache, "put", ValueError("no"), at=2)
        with pytest.raises(ValueError):
            made.ingest(text(12, seed=2))

    def lawful(made, _):
        one = layout.Layout(*(np.asarray(x)[0] for x in made.layouts))
        layout.check(made.focus, one, made.blocks, made.dead)
        seen.append(made.blocks)

    made.on_refocus = lawful
    made.peek(ASKED)
    assert seen


def test_an_edit_that_is_refused_changes_nothing():
    made = session(KEEP, worths=worths(1))
    made.predict(text(4 * WINDOW, seed=1))
    made.add_document("a", text(WINDOW, seed=2))
    made.predict(text(2 * BLOCK + 2, seed=3))
    want, length = made.peek(ASKED), made.length
    for edit in (
        lambda: made.add_document("a", ASKED),
        lambda: made.add_document("b", ASKED[:0]),
        lambda: made.delete_document("c"),
        lambda: made.replace_document("c", ASKED),
    ):
        with pytest.raises(UserError):
            edit()
        assert made.length == length and len(made.waiting) == 2
        np.testing.assert_array_equal(made.peek(ASKED), want)


def test_who_is_told_of_a_refocus_cannot_change_the_session():
    made = session()
    made.on_refocus = lambda made, _: made.predict(ASKED)
    with pytest.raises(UserError, match="on_refocus may look"):
        made.predict(text(2 * BLOCK))
