"""A store that fails or is slow, and a machine that is full: told, survived, and nothing lost."""

import contextlib
import dataclasses
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.focus import layout
from mctx.runtime import focusing, reading, rows, shelf
from mctx.tree.arrays import Arrays
from mctx.tree.head import HeadRecord, StoreError, TreeError, explained
from mctx.tree.ingest import AT_ONCE
from mctx.tree.store import Tree
from tests.runtime.small import BLOCK, CONFIG, WINDOW, place, session, text, worths

TEXT = text(8 * WINDOW + 2, seed=1)
EAGER = dataclasses.replace(CONFIG, commit_every=1)
WRITES = (Arrays, "write"), (HeadRecord, "replace")
READS = (Arrays, "read_pages"), (Arrays, "read_rows"), (Arrays, "read_parts")


class Store:
    """Storage with a switch: it works, `fails`, `hangs` until it works, or takes `seconds`."""

    def __init__(self, monkeypatch, *functions):
        self._on = threading.Event()
        self.fails, self.calls, self.seconds = False, 0, 0.0
        self.works()
        for owner, name in functions:
            monkeypatch.setattr(owner, name, self._switched(getattr(owner, name)))

    def works(self):
        self.fails = False
        self._on.set()

    def hangs(self):
        self._on.clear()

    def _switched(self, function):
        def switched(*arguments):
            self.calls += 1
            self._on.wait(20)
            time.sleep(self.seconds)
            with explained("The store is broken"):
                if self.fails:
                    raise OSError("no route")
            return function(*arguments)

        return switched


def stored(made) -> np.ndarray:
    tree = Tree.open(made.tree.uri)
    return tree.tokens(0, tree.length)


def last(reports, name):
    return reports[-1][f"store/{name}"]


# -- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_store_that_cannot_take_more_is_streamed_past_and_loses_nothing(how, monkeypatch):
    reports = []
    made = session(EAGER, worths=worths(1), on_refocus=lambda _, report: reports.append(report))
    want = session(worths=worths(1)).read_tokens(TEXT)
    store = Store(monkeypatch, *WRITES)
    first, rest = np.split(TEXT, [3 * WINDOW])
    got = [made.read_tokens(first)]
    store.fails = how == "fails"
    if how == "hangs":
        store.hangs()
    got.append(made.read_tokens(rest))
    assert last(reports, "tokens_waiting") >= len(rest) - 3 * BLOCK
    what = "commits_failed" if how == "fails" else "commits_deferred"
    assert last(reports, what) > 9
    np.testing.assert_array_equal(np.concatenate(got)[1:], want[1:])
    if how == "fails":
        with pytest.raises(StoreError, match="no route"):
            made.predict(TEXT[:1])  # read all the same
    store.works()
    made.predict(TEXT[1:2] if how == "fails" else TEXT[:2])
    np.testing.assert_array_equal(stored(made), np.concatenate([TEXT, TEXT[:2]]))


def test_a_history_that_may_not_wait_longer_stops_and_goes_on(monkeypatch):
    limited = dataclasses.replace(EAGER, unstored=2 * WINDOW)
    made = session(limited, worths=worths(1))
    store = Store(monkeypatch, *WRITES)
    store.fails = True
    with pytest.raises(StoreError):
        made.read_tokens(TEXT)
    stopped = made.length
    assert 2 * WINDOW < stopped < 3 * WINDOW
    for _ in range(2):
        with pytest.raises(StoreError):
            made.read_tokens(TEXT[stopped:])
    assert made.length == stopped
    store.works()
    made.predict(TEXT[stopped:])
    np.testing.assert_array_equal(stored(made), TEXT[: len(TEXT) // BLOCK * BLOCK])
    store.seconds = 0.05  # a slow one is waited for
    made.read_tokens(text(4 * WINDOW, seed=2))
    assert made.storing.report()["store/ms_stalled"] > 50


def test_a_text_that_is_ingested_stops_at_what_may_wait_too(monkeypatch):
    made = session(dataclasses.replace(CONFIG, unstored=2 * WINDOW), worths=worths(1))
    store = Store(monkeypatch, *WRITES)
    store.fails = True
    with pytest.raises(StoreError):
        made.ingest(text(8 * AT_ONCE * WINDOW))
    assert made.storing.waiting <= AT_ONCE * WINDOW
    assert made.length == 8 * AT_ONCE * WINDOW  # the rest waits to be read


def test_a_tree_that_was_taken_over_stops_the_session_at_once():
    made = session(EAGER, worths=worths(1))
    made.predict(TEXT[:WINDOW])
    Tree.open(made.tree.uri, mode="w")
    with pytest.raises(TreeError, match="taken over"):
        made.read_tokens(TEXT)


# -- reading -----------------------------------------------------------------------------------


def cold_session(**changes):
    """Over a tree of which nothing is in memory."""
    first = session()
    first.ingest(TEXT)
    first.tree.close()
    config = dataclasses.replace(CONFIG, **changes)
    made = session(config, Tree.open(first.tree.uri, mode="w"), worths=worths(1))
    made.read_tokens(TEXT[:BLOCK])
    return made


def forget(made):
    """Nothing but the tree, of what a refocus may look at."""
    made.cache.drop()
    made.assembly.forget()
    made.tree._mirror = type(made.tree._mirror)(made.tree._arrays)


def test_a_refocus_that_could_not_read_is_made_up_for_and_changes_nothing(monkeypatch):
    more = TEXT[: 2 * BLOCK + 1]
    plain, made = cold_session(), cold_session()
    want = plain.read_tokens(more)
    store = Store(monkeypatch, *READS)
    forget(made)
    store.fails = True
    got = [made.read_tokens(more[: BLOCK - 1])]
    for _ in range(2):  # all of this is in the history, then the refocus fails, again and again
        with pytest.raises(StoreError, match="no route"):
            made.read_tokens(more[BLOCK - 1 : BLOCK])
        assert made.length == len(TEXT) // BLOCK * BLOCK + 2 * BLOCK
    store.works()
    got.append(made.read_tokens(more[BLOCK:]))
    np.testing.assert_allclose(got[0], want[: BLOCK - 1], atol=1e-5)
    np.testing.assert_allclose(got[1], want[BLOCK:], atol=1e-4)


def test_where_cold_nodes_are_not_waited_for_a_failing_store_is_gone_on_without(monkeypatch):
    made, reports = cold_session(cold="async"), []
    made.on_refocus = lambda _, report: reports.append(report)
    made.worths = None  # the lens needs the gists of what it looks at
    store = Store(monkeypatch, *READS)
    made.tree._mirror = type(made.tree._mirror)(made.tree._arrays)
    store.fails = True
    nll = made.read_tokens(TEXT[: 3 * BLOCK])
    assert np.all(np.isfinite(nll)) and reports[-1]["refocus/blind"] == 1
    assert store.calls > 0
    one = layout.Layout(*(np.asarray(x)[0] for x in made.layouts))
    layout.check(made.focus, one, made.blocks)
    store.works()
    made.read_tokens(TEXT[:BLOCK])
    assert reports[-1]["refocus/blind"] == 0


# -- memory ------------------------------------------------------------------------------------


def test_a_buffer_that_does_not_fit_names_its_settings():
    with pytest.raises(UserError, match=r"lower budget \(now 1\d+\) or heads"):
        session(dataclasses.replace(CONFIG, budget=10**12))


@pytest.mark.parametrize(
    "what, words",
    [("extend", "lower budget .now 64. or top"), ("_apply_lens", "lower capacity .now 40. or")],
)
def test_a_full_device_names_the_setting_to_lower(what, words, monkeypatch):
    made = session()
    made.read_tokens(TEXT[:BLOCK])

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    owner = reading if what == "extend" else focusing
    monkeypatch.setattr(owner, what, full)
    with pytest.raises(UserError, match=words):
        made.read_tokens(TEXT[: 2 * BLOCK])


def uses_up(monkeypatch, owner, name, donated, calls=0):
    """After so many `calls` of a function, one fails that has used up what it was given."""
    plain, count = getattr(owner, name), itertools.count()

    def full(*arguments):
        if next(count) != calls:
            return plain(*arguments)
        for x in jax.tree.leaves(arguments[donated]):
            if isinstance(x, jax.Array):
                x.delete()
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(owner, name, full)
    return count


CHOSEN = dataclasses.replace(CONFIG, heads=2, top=1, router="utility")
KEEP = dataclasses.replace(CONFIG, tail="keep")
LOST = [
    *[(CHOSEN, rows, name, 0) for name in ("move_rows", "write_rows", "write_blocks", "choose")],
    *[(CHOSEN, rows, "turn", 1), (KEEP, rows, "write_tail", 0)],
    *[(CONFIG, shelf, "_written", 0), (CONFIG, reading, "extend", 4), (CONFIG, None, "_grow", 3)],
]


def test_a_tail_that_was_used_up_is_read_again_where_blocks_stood_in_it_alone(monkeypatch):
    config = dataclasses.replace(CONFIG, tail="reread", reread=2 * BLOCK)
    made, plain = (session(config, worths=worths(1)) for _ in "ab")
    for one in made, plain:
        one.predict(TEXT[: 6 * WINDOW])
    uses_up(monkeypatch, reading, "extend", 4)
    with pytest.raises(UserError):
        made.predict(TEXT[:1])
    np.testing.assert_allclose(made.peek(TEXT[:9]), plain.peek(TEXT[:9]), atol=1e-4)


@pytest.mark.parametrize("config, owner, name, donated", LOST)
@pytest.mark.parametrize("calls", [0, 3])
def test_what_a_failed_write_has_used_up_is_made_again(
    config, owner, name, donated, calls, monkeypatch
):
    text_, start = np.concatenate([TEXT, TEXT]), 4 * WINDOW + 1
    made, plain = session(config), session(config)
    for one in made, plain:
        one.read_tokens(text_[:start])
    plain.read_tokens(text_[start:])
    count = uses_up(monkeypatch, owner or made.reader, name, donated, calls)
    with contextlib.suppress(UserError):
        made.read_tokens(text_[start:])
    assert next(count) > calls
    for _ in range(2):  # in the middle of a block, too, it can be looked at
        np.testing.assert_array_less(made.peek(TEXT[:BLOCK]), np.inf)
    made.read_tokens(text_[made.length :])
    assert made.length == len(text_)
    jax.tree.map(np.testing.assert_array_equal, made.layouts, plain.layouts)
    if config is not KEEP:  # of which rows as they were decoded are lost
        np.testing.assert_allclose(made.peek(TEXT[:9]), plain.peek(TEXT[:9]), atol=1e-4)


def test_other_errors_of_a_device_are_not_explained_away(monkeypatch):
    made = session(tree=place())

    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(reading, "extend", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        made.read_tokens(TEXT[:3])


# -- what an error leaves undone ---------------------------------------------------------------


@pytest.mark.parametrize("edit", ["delete", "add", "ingest"])
def test_an_edit_that_could_not_be_followed_is_followed_with_the_next_use(edit, monkeypatch):
    made = session(worths=worths(1))
    made.add_document("kept", text(3 * WINDOW, seed=1))
    made.add_document("secret", text(2 * WINDOW, seed=2))
    made.predict(text(BLOCK, seed=9))
    edits = {
        "delete": lambda: made.delete_document("secret"),
        "add": lambda: made.add_document("new", text(WINDOW + 3, seed=8)),
        "ingest": lambda: made.ingest(text(BLOCK, seed=8)),
    }

    def fails(*_):
        raise StoreError("no route")

    with monkeypatch.context() as broken:
        broken.setattr(made.cache, "states", fails)
        with pytest.raises(StoreError, match="no route"):
            edits[edit]()
    tail = text(9, seed=3)
    found = made.peek(tail)
    assert made.blocks == made.tree.blocks
    np.testing.assert_array_equal(made.dead_runs, made.tree.dead)
    fresh = session(tree=Tree.open(made.tree.uri), worths=worths(1))
    np.testing.assert_allclose(found, fresh.peek(tail), atol=1e-4)


def test_what_was_said_before_a_step_failed_is_history(monkeypatch):
    config = dataclasses.replace(CONFIG, every=4)
    want = session(config)
    whole = want.generate("ABCDEFGH", tokens=14)
    made, said = session(config), ""
    with monkeypatch.context() as broken:
        uses_up(broken, reading, "say", 5, 6)
        with pytest.raises(UserError, match="lower"):
            for piece in made.stream("ABCDEFGH", tokens=14):
                said += piece
    assert said and whole.startswith(said)
    assert said + made.generate(tokens=14 - len(said)) == whole
    assert made.length == want.length


def test_ids_that_are_no_tokens_are_refused_before_anything_is_read():
    made = session()
    made.predict(text(6))
    before = made.peek(text(9, seed=3))
    for wrong in ([5, 99, 3], [-1], [[1, 2]], [0.5]):
        for use in (made.predict, made.ingest, made.peek, made.read_tokens):
            with pytest.raises(UserError, match="token ids must be"):
                use(np.array(wrong))
    assert made.length == 6
    np.testing.assert_array_equal(made.peek(text(9, seed=3)), before)


def test_tokens_that_wait_for_their_block_are_read_before_what_follows():
    tail, both = text(3, seed=3), [session(worths=worths(1)) for _ in range(2)]
    for one in both:
        one.ingest(text(3 * WINDOW + 1))
        for _ in range(4):  # until the same worths change nothing any more
            one.refocus()
    made, plain = both
    found = made.peek(tail)
    np.testing.assert_allclose(found, plain.predict(tail)[1:], atol=1e-4)
    made.refocus()
    np.testing.assert_allclose(made.peek(tail), found, atol=1e-4)


def test_a_stream_ends_where_the_session_is_sent_elsewhere():
    made = session()
    made.ingest(text(3 * WINDOW))
    stream = made.stream(tokens=20)
    next(stream)
    made.seek(4)
    assert list(stream) == []
    with pytest.raises(UserError, match="seek its end"):
        made.generate(tokens=3)
