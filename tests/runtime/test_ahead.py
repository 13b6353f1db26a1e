"""What is asked or decided before a refocus is due: that changes nothing, and is early enough."""

import contextlib
import dataclasses
import itertools
import sys
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.runtime import (
    SessionBatch,
    ahead,
    assembly,
    deciding,
    finding,
    focusing,
    growing,
    reading,
)
from mctx.runtime.sampling import Sampling
from mctx.tree.head import StoreError
from mctx.tree.ingest import Ingest
from mctx.tree.window import OpenWindow
from tests.runtime import small, test_finding
from tests.runtime.small import (
    BLOCK,
    CONFIG,
    TWO,
    WINDOW,
    Compilations,
    place,
    reader,
    session,
    text,
    worths,
)

AHEAD = dataclasses.replace(CONFIG, decide="ahead")
CASES = [
    AHEAD,
    dataclasses.replace(TWO, decide="ahead", tail="keep", every=2),
    dataclasses.replace(AHEAD, heads=2, router="utility", tail="reread", reread=BLOCK),
    dataclasses.replace(AHEAD, staging=96, staging_capacity=48, staging_every=3),
    dataclasses.replace(CONFIG, tail="keep"),
    dataclasses.replace(TWO, every=2),
]
TEXT = text(9 * WINDOW + 3, seed=1)


def told(made):
    """What a session says and shows that reads, stands elsewhere, is edited, and reads on."""
    nll = [made.predict(TEXT), made.predict(TEXT[: 2 * BLOCK])]
    said = made.generate(tokens=3 * BLOCK + 1, temperature=1.0, seed=3)
    made.predict(TEXT[: made.due])
    for seen in BLOCK - 1, 2 * BLOCK - 1:  # the last steps are under way, and come to nothing
        stream = made.stream(tokens=4 * BLOCK, temperature=1.0, seed=seen)
        said += "".join(next(stream) for _ in range(seen))
        stream.close()
        nll.append(made.predict(TEXT[: made.due]))
    made.ingest(TEXT[: 2 * WINDOW])
    made.predict(TEXT[:BLOCK])
    made.add_document("one", TEXT[: WINDOW + 1])
    made.place(made.layouts._replace(born=made.layouts.born + 1))
    nll.append(made.predict(TEXT[: 3 * BLOCK]))
    return nll, said, jax.device_get((made.layouts, made.tail, made.assembly.buffer))


def hear(monkeypatch, events, where, name, event):
    """Every call of a function is an event."""
    plain = getattr(where, name)

    def telling(*arguments, **more):
        events.append(event)
        return plain(*arguments, **more)

    monkeypatch.setattr(where, name, telling)


def hear_waits(monkeypatch, events):
    """So is all that the host fetches from the device, but the tokens it hands out."""
    hear(monkeypatch, events, jax, "device_get", "wait")
    hear(monkeypatch, events, focusing, "_scores_of", "wait")
    plain, free = np.asarray, ("_known", "here")  # `here` is on the host's own processor

    def asarray(x, *arguments, **more):
        by = sys._getframe(1).f_code
        if isinstance(x, jax.Array) and "/mctx/" in by.co_filename and by.co_name not in free:
            events.append("wait")
        return plain(x, *arguments, **more)

    monkeypatch.setattr(np, "asarray", asarray)


@pytest.mark.parametrize("config, of", [*((c, small) for c in CASES), (CONFIG, test_finding)])
def test_it_is_the_same_decision_whenever_it_is_made(config, of, monkeypatch):
    early = told(of.session(config))
    monkeypatch.setattr(ahead.Ahead, "think", lambda *_: False)
    monkeypatch.setattr(ahead.Ahead, "prepare", lambda *_: None)
    monkeypatch.setattr(ahead.Ahead, "foresee", lambda *_: None)
    jax.tree.map(np.testing.assert_array_equal, early, told(of.session(config)))


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(TWO, every=2, tail="keep")])
def test_a_block_is_read_and_looked_at_before_its_tokens_are_known(config, monkeypatch):
    made, events = session(config), []
    made.predict(TEXT[: 4 * WINDOW])

    told = partial(hear, monkeypatch, events)
    told(OpenWindow, "_read", "read")
    told(focusing, "_apply_lens", "look")
    told(growing, "growing", "known")
    made.generate(tokens=2 * made.interval)
    assert [events[i : i + 3] for i, event in enumerate(events) if event == "read"] == [
        ["read", "look", "known"]
    ] * 2


@pytest.mark.parametrize("of", [small, test_finding])
@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(TWO, every=2, tail="keep")])
def test_no_token_of_a_block_waits_for_what_its_end_asks(config, of, monkeypatch):
    made, events, pieces = of.session(config), [], 3
    made.predict(TEXT[: 4 * WINDOW])
    made.generate(tokens=made.interval)
    hear(monkeypatch, events, reading, "say", "say")
    hear(monkeypatch, events, OpenWindow, "_read", "read")
    hear(monkeypatch, events, finding, "looking", "look")
    hear_waits(monkeypatch, events)
    for _ in made.drawn(pieces * made.interval, Sampling()):
        events.append("token")
    tokens = [i for i, event in enumerate(events) if event == "token"]
    for last in tokens[made.interval - 1 :: made.interval]:
        began = last - events[:last][::-1].index("say")
        asked = ["read", "look"] if of is test_finding else ["read"]
        assert events[began:last] == [*asked, "token", "token"]
    assert "wait" in events


def looks_of(monkeypatch):
    """Counts looks of the lens, by whether a refocus was under way."""
    counts, under_way = {True: 0, False: 0}, []
    plain, refocusing = focusing._apply_lens, ahead.Ahead.decided

    def look(*arguments):
        counts[bool(under_way)] += 1
        return plain(*arguments)

    def decided(self, made):
        under_way.append(made)
        decision = yield from refocusing(self, made)
        under_way.pop()
        return decision

    monkeypatch.setattr(focusing, "_apply_lens", look)
    monkeypatch.setattr(ahead.Ahead, "decided", decided)
    return counts


@pytest.mark.parametrize("read", ["predict", "generate"])
def test_a_refocus_that_was_decided_ahead_asks_the_lens_nothing(read, monkeypatch):
    made = session(AHEAD)
    made.predict(TEXT)
    made.generate(tokens=made.due)
    counts = looks_of(monkeypatch)
    if read == "predict":
        made.predict(TEXT[: 8 * BLOCK])
    else:
        made.generate(tokens=8 * BLOCK)
    assert counts[False] >= 8 and counts[True] == 0
    made.seek(made.tree.blocks)  # where it stands there is not known before
    assert counts[True] > 0


def test_windows_that_a_decision_misses_are_read_before_it_is_due(monkeypatch):
    made = session(AHEAD, on_refocus=lambda made, _: made.cache.drop())
    made.predict(TEXT)
    made.generate(tokens=made.due)
    before, late, plain = made.cache.windows_read, [], assembly.Assembly.assemble

    def assemble(*arguments):
        began = made.cache.windows_read
        written = plain(*arguments)
        late.append(made.cache.windows_read - began)
        return written

    monkeypatch.setattr(assembly.Assembly, "assemble", assemble)
    made.generate(tokens=40 * BLOCK)
    assert made.cache.windows_read > before and len(late) >= 40 and not any(late)


def test_the_lens_is_told_of_the_present_as_it_was_a_refocus_ago(monkeypatch):
    asked, kept, plain = [], [], focusing.lens_scores

    def scores(model, params, cfg, layouts, shelf, found, query, *rest):
        asked.append(np.asarray(query))
        return plain(model, params, cfg, layouts, shelf, found, query, *rest)

    made = session(AHEAD, on_refocus=lambda made, _: kept.append(np.asarray(made.query)))
    made.predict(TEXT[: 8 * WINDOW])
    monkeypatch.setattr(focusing, "lens_scores", scores)
    kept.clear()
    made.predict(TEXT[: 2 * BLOCK])
    changes = [a for a, b in zip(asked, asked[1:], strict=False) if not np.array_equal(a, b)]
    assert any(np.array_equal(one, kept[0]) for one in asked)
    assert len(changes) == 1 and not any(np.array_equal(one, kept[1]) for one in asked)


def test_a_store_that_fails_while_it_thinks_is_told_when_it_is_due(monkeypatch):
    made, plain = session(AHEAD), deciding._asked
    made.predict(TEXT)
    made.generate(tokens=made.due)
    waits, failing = made.refocuses, [True]

    def fail(*arguments, **more):
        if failing:
            raise StoreError("no route")
        return plain(*arguments, **more)

    monkeypatch.setattr(deciding, "_asked", fail)
    assert made.ahead.think(made) is False and made.refocuses == waits
    with pytest.raises(StoreError, match="no route"):
        made.predict(TEXT[:BLOCK])
    failing.clear()
    made.predict(TEXT[:BLOCK])
    assert made.refocuses == waits + 2


def test_thinking_ahead_compiles_nothing_anew():
    made = session(AHEAD)
    made.predict(text(5 * 4**4 * BLOCK, seed=2))
    made.generate(tokens=3 * BLOCK)
    counted = Compilations()
    made.predict(TEXT[: 4 * BLOCK])
    made.generate(tokens=4 * BLOCK)
    assert counted.count == 0


@pytest.mark.parametrize("config, of", [(CONFIG, small), (AHEAD, small), (CONFIG, test_finding)])
def test_lanes_ask_before_any_of_them_waits(config, of, monkeypatch):
    batch = SessionBatch(of.opened(), [place() for _ in range(3)], config, reader())
    for i, made in enumerate(batch.sessions):
        made.predict(text(6 * WINDOW, seed=i))
    events = []

    told = partial(hear, monkeypatch, events)
    told(OpenWindow, "_read", "read")
    told(Ingest, "_append", "take")
    told(deciding, "_asked", "ask")
    told(focusing, "_scores_of", "wait")
    told(finding.Finding, "_by_block", "find")
    batch.generate([dict(tokens=BLOCK)] * 3)
    read = [event for event in events if event in ("read", "take")]
    looks = [event for event in events if event in ("ask", "wait", "find")]
    assert read == ["read"] * 3 + ["take"] * 3
    assert looks.count("ask") == looks.count("wait") >= 3
    asked = ["find"] * 3 * (of is test_finding) + ["ask"] * 3
    assert config is AHEAD or looks[: len(asked) + 1] == [*asked, "wait"]


def test_what_cannot_be_known_before_is_decided_when_it_is_due():
    made = session(AHEAD, worths=worths(1))
    made.predict(TEXT)
    assert made.ahead.think(made) is False
    with pytest.raises(UserError, match="decide must be one of"):
        session(dataclasses.replace(CONFIG, decide="never"))


# -- whatever comes between ------------------------------------------------------------------------

SOME = st.integers(1, 2 * BLOCK + 1)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["predict", "generate", "leave", "peek", "ingest", "fail"]), SOME),
    st.tuples(st.just("stop"), st.integers(1, small.VOCABULARY - 1)),
    st.tuples(st.sampled_from(["seek", "refocus", "drop", "add", "replace", "delete"]), st.just(0)),
)


def left(made, count):
    """A reader of a stream who goes before its end."""
    stream = made.stream(tokens=4 * BLOCK, temperature=1.0, seed=count)
    said = "".join(itertools.islice(stream, count))
    stream.close()
    return said


def failed(made, _):
    """The store fails while the history grows up to a refocus, which is made up for."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StoreError):

        def fail(*_):
            raise StoreError("no route")

        patch.setattr(type(made.tree), "gather", fail)
        made.predict(TEXT[: made.due])
    made.peek(TEXT[:BLOCK])


def edited(made, what):
    spans = made.tree.documents.spans
    names = [span.name for span in spans if span.name]  # of those that are not deleted
    if what == "add" or not names:
        made.add_document(f"{len(spans)}", TEXT[3 : 3 + WINDOW + len(spans)])
    elif what == "replace":
        made.replace_document(names[-1], TEXT[len(TEXT) - WINDOW :])
    else:
        made.delete_document(names[0])


def sought(made, _):
    made.seek(made.tree.blocks // 2)
    seen = made.peek(TEXT[:BLOCK])
    made.seek(made.tree.blocks)
    return seen


DO = {
    "predict": lambda made, count: made.predict(TEXT[count : 2 * count]),
    "generate": lambda made, count: made.generate(tokens=count, temperature=1.0, seed=count),
    "leave": left,
    "peek": lambda made, _: made.peek(TEXT[:BLOCK]),
    "ingest": lambda made, count: made.ingest(TEXT[:count]),
    "fail": failed,
    "stop": lambda made, id: made.generate(
        tokens=3 * BLOCK, temperature=1.0, seed=id, stop=made.opened.tokenizer.decode([id])
    ),
    "seek": sought,
    "refocus": lambda made, _: made.refocus() and None,
    "drop": lambda made, _: made.cache.drop(),
    "add": lambda made, _: edited(made, "add"),
    "replace": lambda made, _: edited(made, "replace"),
    "delete": lambda made, _: edited(made, "delete"),
}


def went_through(made, steps):
    """All that comes out of some steps, and the layouts in the end."""
    made.predict(TEXT[: 2 * WINDOW])
    out = [DO[what](made, count) for what, count in steps] + [made.predict(TEXT[: 3 * BLOCK])]
    return out, made.layouts


def alike(one, other):
    """Up to rounding: rows that are written once more after a failure stand in another order."""
    if np.asarray(one).dtype.kind == "f":
        np.testing.assert_allclose(one, other, atol=1e-4)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "of, config", [(small, AHEAD), (test_finding, dataclasses.replace(CONFIG, every=2))]
)
@settings(max_examples=10, deadline=None)
@given(steps=st.lists(STEPS, min_size=2, max_size=6))
def test_what_was_foreseen_is_never_taken_for_what_came(of, config, steps):
    early = went_through(of.session(config), steps)
    with pytest.MonkeyPatch.context() as patch:
        for name in "think", "prepare", "foresee":
            patch.setattr(ahead.Ahead, name, lambda *_: False)
        late = went_through(of.session(config), steps)
    jax.tree.map(alike, early, late)


@pytest.mark.parametrize("config", [CONFIG, AHEAD])
@pytest.mark.parametrize(
    "owner, name", [(reading, "tokens_of"), (OpenWindow, "ask"), (deciding, "coming")]
)
def test_what_goes_wrong_before_it_is_due_ends_no_line(owner, name, config, monkeypatch):
    def say():
        batch = SessionBatch(small.opened(), [place() for _ in range(2)], config, reader())
        return batch.generate([dict(text="HELLO", tokens=3 * BLOCK), dict(text="ABC", tokens=9)])

    def broken(*_):
        raised.append(name)
        raise ValueError("nobody has thought of this")

    want, raised = say(), []
    monkeypatch.setattr(owner, name, broken)
    assert say() == want and raised
