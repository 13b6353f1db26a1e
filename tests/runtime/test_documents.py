"""Sessions over documents and mounted trees: lawful layouts, nothing dead shown, nothing stale."""

import dataclasses

import numpy as np
import pytest

from mctx.errors import UserError
from mctx.focus import layout
from mctx.runtime import Session
from mctx.tree.head import StoreError
from mctx.tree.ingest import Ingest
from mctx.tree.store import Tree
from tests.runtime.small import BLOCK, CONFIG, MODEL, WINDOW, opened, place, reader, session, text

TOP = MODEL.gist.span(4)
TAIL = text(9, seed=5)


def worths(made):
    """A block's worth by what it says: the same for the same text, wherever it stands."""
    tokens = made.tree.tokens(0, made.tree.length).reshape(-1, BLOCK)
    return (tokens.sum(axis=1) * 7919 % 101 / 101.0)[: made.blocks]


def lawful(made, _=None):
    for head in range(made.config.heads):
        one = layout.Layout(*(x[head] for x in made.layouts))
        layout.check(made.focus, one, made.blocks, made.dead)


def shown(made) -> set[tuple[int, int]]:
    one = layout.Layout(*(np.asarray(x)[0] for x in made.layouts))
    live = np.arange(len(one.level)) < one.count
    some = live & one.shown
    return set(zip(one.level[some].tolist(), one.index[some].tolist(), strict=True))


def fresh(made, **how):
    """Another session, which has nothing in its caches, over what the first has committed."""
    return session(tree=Tree.open(made.tree.own.uri), worths=worths, **how)


def same_reading(made, other):
    assert shown(made) == shown(other)
    np.testing.assert_allclose(made.peek(TAIL), other.peek(TAIL), atol=1e-4)


def test_documents_come_change_and_go_and_the_focus_stays_lawful():
    made = session(worths=worths, on_refocus=lawful)
    made.ingest(text(3 * WINDOW + 5, seed=1))
    for i in range(6):
        made.add_document(f"{i}.py", text(2 * WINDOW + 3 * i + 1, seed=10 + i))
    same_reading(made, fresh(made))
    before = made.peek(TAIL)
    made.replace_document("3.py", text(WINDOW, seed=20))  # shorter: windows die
    made.replace_document("1.py", text(5 * WINDOW, seed=21))  # moves to the end
    made.delete_document("0.py")
    same_reading(made, fresh(made))
    assert np.abs(made.peek(TAIL) - before).max() > 1e-3
    dead = {b for start, stop in made.tree.dead.tolist() for b in range(start, stop)}
    assert dead and not any(level == 0 and index in dead for level, index in shown(made))
    nll = made.predict(text(2 * WINDOW + 3, seed=30))
    assert np.all(np.isfinite(nll[1:]))
    assert made.tree.blocks * BLOCK == made.tree.length


def test_the_lens_is_offered_nothing_dead(monkeypatch):
    made = session(dataclasses.replace(CONFIG, sink=0))
    made.add_document("a", text(6 * WINDOW, seed=1))
    made.add_document("b", text(6 * WINDOW, seed=2))
    made.delete_document("a")
    scores = made.lens(made.focus, made.layouts, np.arange(1))
    level, index = np.asarray(made.layouts.level[0]), np.asarray(made.layouts.index[0])
    end = (index + 1) * made.focus.spans[level]
    gone = (index >= 0) & (end <= 6 * WINDOW // BLOCK)
    assert gone.any() and not np.any(np.asarray(scores.own)[0][gone])
    assert np.any(np.asarray(scores.own)[0][~gone])


def test_a_mounted_tree_of_whole_top_spans_reads_like_one_history():
    book, own = text(TOP, seed=3), text(5 * WINDOW + 2, seed=4)
    mount = session()
    mount.ingest(book)
    made = session(mounts=[mount.tree.uri], worths=worths, on_refocus=lawful)
    made.ingest(own)
    plain = session(worths=worths)
    plain.ingest(np.concatenate([book, own]))
    same_reading(made, plain)
    assert made.tree.own.length == len(own) // BLOCK * BLOCK and made.tree.blocks == plain.blocks


def code_base():
    """A committed tree of documents, its writer, and its length in no span of any level."""
    tree = Tree.create(place(), session().tree.spec)
    ingest = Ingest(reader(), tree)
    for i in range(3):
        ingest.add_document(f"{i}.py", text(2 * WINDOW - i, seed=40 + i))
    tree.commit()
    return tree, ingest


def test_a_code_base_is_mounted_written_behind_and_followed():
    tree, ingest = code_base()
    made = session(mounts=[tree.uri], worths=worths, on_refocus=lawful)
    made.add_document("notes", text(WINDOW, seed=50))
    made.predict(text(3 * WINDOW, seed=51))
    assert set(made.tree.documents) == {"1:0.py", "1:1.py", "1:2.py", "notes"}
    assert made.tree.documents["notes"].start == TOP
    assert all(np.any(made.tree.gather(level, np.array([0]))) for level in (1, 2, 3, 4))
    assert not made.refresh()
    ingest.replace_document("1.py", text(WINDOW, seed=52))
    tree.commit()
    assert made.refresh()
    made.tree.commit()
    other = fresh(made, mounts=[tree.uri])
    same_reading(made, other)
    np.testing.assert_array_equal(
        made.tree.gather(4, np.array([0])), other.tree.gather(4, np.array([0]))
    )
    for i in range(3, 9):  # past the gap: what is behind is shifted by a top span
        ingest.add_document(f"{i}.py", text(2 * WINDOW, seed=40 + i))
    tree.commit()
    assert made.refresh() and made.tree.documents["notes"].start == 2 * TOP
    same_reading(made, fresh(made, mounts=[tree.uri]))
    assert np.all(np.isfinite(made.predict(text(WINDOW, seed=53))[1:]))


def test_what_changed_in_one_mount_is_followed_though_another_failed(monkeypatch):
    (first, ingest), (second, _) = code_base(), code_base()
    made = session(mounts=[first.uri, second.uri], worths=worths, on_refocus=lawful)
    made.predict(text(3 * WINDOW, seed=51))
    ingest.replace_document("1.py", text(WINDOW, seed=52))
    first.commit()

    def fails():
        raise StoreError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(made.tree.mounts[1], "refresh", fails)
        with pytest.raises(StoreError):
            made.refresh()
    made.refresh()
    made.tree.commit()
    same_reading(made, fresh(made, mounts=[first.uri, second.uri]))


def test_sessions_that_share_an_open_tree_all_follow_it():
    tree, ingest = code_base()
    one = Tree.open(tree.uri)
    a, b = (session(mounts=[one], worths=worths, on_refocus=lawful) for _ in "ab")
    ingest.replace_document("1.py", text(WINDOW, seed=52))
    tree.commit()
    assert a.refresh() and b.refresh() and not a.refresh()
    same_reading(a, b)


def test_a_mount_of_other_models_is_refused():
    tree, _ = code_base()
    other = opened()._replace(fingerprint="other")
    with pytest.raises(UserError, match="other models"):
        Session(other, place(), CONFIG, mounts=[tree])


def test_mounts_are_a_list_without_the_tree_itself(tmp_path):
    for mounts in ("runs/book", tmp_path):
        with pytest.raises(UserError, match="must be a list of trees"):
            session(mounts=mounts)
    own = place()
    with pytest.raises(UserError, match="into itself"):
        session(tree=own, mounts=[f"{own}/"])
    assert not Tree.exists(own)


def test_a_history_that_was_all_deleted_is_not_continued():
    made = session()
    made.add_document("a", text(WINDOW))
    made.delete_document("a")
    with pytest.raises(UserError, match="nothing to continue"):
        made.generate(tokens=3)
