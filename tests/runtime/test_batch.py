"""Several sessions in one batch: each reads and says what it would alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.runtime import SessionBatch, rows
from mctx.runtime.storing import Storing
from mctx.tree.head import StoreError
from tests.runtime.small import (
    CONFIG,
    MODEL,
    TWO,
    Compilations,
    opened,
    place,
    reader,
    session,
    text,
)

TAIL = text(9, seed=3)
ONE = dict(text="HELLOBWORLD", tokens=14)
TWO_ASKS = dict(text="ABCDEFGHIJKLMNOPQ", tokens=23, temperature=1.5, top_k=5, seed=4)
PLAIN = dict(text="KLM", tokens=9, temperature=1.0, seed=1)
ASKS = [ONE, TWO_ASKS, PLAIN]
# Not all heads run: values, too, have a place of their own then.
CHOSEN = dataclasses.replace(CONFIG, heads=2, top=1, router="utility")
AHEAD = dataclasses.replace(CONFIG, decide="ahead")


def batch(count, config=CONFIG, **how):
    return SessionBatch(opened(), [place() for _ in range(count)], config, reader(), **how)


@functools.cache
def alone(which, config=CONFIG):
    """What a session says on its own, twice in turn, and how the text after that reads to it."""
    made = session(config)
    said = made.generate(**ASKS[which]), made.generate(tokens=6)
    return said, made.peek(TAIL)


def same(made, which, config=CONFIG):
    np.testing.assert_allclose(made.peek(TAIL), alone(which, config)[1], atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, TWO, CHOSEN, AHEAD])
def test_sessions_side_by_side_say_what_they_say_alone(config):
    made = batch(3, config)
    said = made.generate(ASKS), made.generate([dict(tokens=6)] * 3)
    assert list(zip(*said, strict=True)) == [alone(which, config)[0] for which in range(3)]
    for which, one in enumerate(made.sessions):
        same(one, which, config)


def test_a_batch_of_one_is_a_session_token_by_token():
    plain = list(session().stream(**TWO_ASKS))
    assert [piece for _, piece in batch(1).stream([TWO_ASKS])] == plain


def test_each_ends_where_it_ends_and_may_be_left_alone():
    whole = alone(0)[0][0]
    made = batch(3)
    said = made.generate([ONE | dict(stop=whole[5:7]), None, ONE | dict(tokens=3)])
    assert said == [whole[: whole.index(whole[5:7])], "", whole[:3]]
    assert made.sessions[1].length == 0
    # What was drawn past the end is no history: it goes on from there like one that never drew it.
    assert made.sessions[2].generate(tokens=11) == whole[3:]


def test_nothing_is_said_behind_a_stop_string_while_others_go_on():
    whole = alone(0)[0][0]
    made = batch(2)
    for stop in (whole[1:3], whole[:2]):
        said = made.generate([ONE | dict(stop=stop), TWO_ASKS])
        assert said[0] == whole[: whole.index(stop)]
        made = batch(2)


def test_who_leaves_leaves_what_was_said():
    made, said = batch(2), ["", ""]
    for which, piece in made.stream([ONE, PLAIN]):
        said[which] += piece
        if len(said[0]) == 5:
            break
    assert alone(0)[0][0].startswith(said[0]) and alone(2)[0][0].startswith(said[1])
    assert [one.length for one in made.sessions] == [11 + len(said[0]), 3 + len(said[1])]


def test_a_store_that_fails_is_its_own_sessions_alone(monkeypatch):
    made, due = batch(3, dataclasses.replace(CONFIG, commit_every=1)), Storing.due
    said = ["", "", ""]

    def fail(self):
        if said[1] and self is made.sessions[1].storing:
            raise StoreError("no room on this disk")
        return due(self)

    monkeypatch.setattr(Storing, "due", fail)
    with pytest.raises(StoreError, match="no room"):
        for which, piece in made.stream(ASKS):
            said[which] += piece
    monkeypatch.undo()
    assert (said[0], said[2]) == (alone(0)[0][0], alone(2)[0][0])
    for which in (0, 2):
        assert made.sessions[which].generate(tokens=6) == alone(which)[0][1]
        same(made.sessions[which], which)
    # The one that failed lost nothing of what it had read and said.
    one, whole = made.sessions[1], alone(1)[0][0]
    assert whole.startswith(said[1]) and 0 < len(said[1]) < len(whole)
    assert one.length == len(TWO_ASKS["text"]) + len(said[1])


def test_a_batch_that_goes_on_compiles_nothing_anew():
    made = batch(3)
    made.generate(ASKS)
    # Long enough that no level of gists is born after this.
    made.generate([dict(tokens=MODEL.gist.span(3))] * 3)
    counted = Compilations()
    made.generate([dict(tokens=21)] * 3)
    made.generate([ask | dict(text="") for ask in reversed(ASKS)])
    assert counted.count == 0


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(UserError, match="at least one tree"):
        SessionBatch(opened(), [], CONFIG)
    with pytest.raises(UserError, match="2 asks"):
        batch(2).generate([ONE])
    with pytest.raises(UserError, match="temperature"):
        batch(1).stream([dict(temperature=-1.0)])
    with pytest.raises(UserError, match="nothing to continue"):
        batch(1).generate([{}])
    one = batch(1)
    for ask in (dict(txt="A"), "A", dict(text=None), dict(text=1.5), dict(text=b"A")):
        with pytest.raises(UserError, match="an ask|token ids"):
            one.stream([ask])
    with pytest.raises(UserError, match="list of asks"):
        one.stream(dict(text="A"))
    with pytest.raises(UserError, match="text or a row of token ids, not NoneType"):
        one.sessions[0].generate(None)
    assert one.sessions[0].length == 0


def test_sessions_have_trees_of_their_own(tmp_path):
    for same in ("memory://twice", "memory://twice/"), (tmp_path / "t", f"file://{tmp_path}/t"):
        with pytest.raises(UserError, match="given twice"):
            SessionBatch(opened(), same, CONFIG, reader())
    assert not (tmp_path / "t").exists()


def test_rows_that_one_session_has_lost_are_made_again_for_the_others(monkeypatch):
    made, plain = batch(2), rows.turn
    assert made.generate(ASKS[:2]) == [alone(which)[0][0] for which in range(2)]

    def full(model, keys, *rest):
        monkeypatch.setattr(rows, "turn", plain)
        keys.delete()
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    said = []
    monkeypatch.setattr(rows, "turn", full)  # of the first whose block ends
    with pytest.raises(UserError, match="not enough memory"):
        for which, piece in made.stream([dict(tokens=6)] * 2):
            said.append((which, piece))
    told = ["".join(piece for which, piece in said if which == one) for one in range(2)]
    wanted = [alone(which)[0][1] for which in range(2)]
    assert sorted(map(len, told))[0] < 6 and max(told, key=len) in wanted
    for which, one in enumerate(made.sessions):
        if told[which] == wanted[which]:
            same(one, which)
        assert np.all(np.isfinite(one.peek(TAIL)))
