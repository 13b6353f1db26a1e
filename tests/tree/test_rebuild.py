"""Gists remade by other models are what those would have made; killed midway, nothing is lost."""

import dataclasses
import itertools

import numpy as np
import pytest

from mctx.tree import rebuild as rebuilding
from mctx.tree.arrays import open_kvstore
from mctx.tree.compact import compact
from mctx.tree.head import TreeError
from mctx.tree.ingest import Ingest, tree_spec
from mctx.tree.rebuild import rebuild
from mctx.tree.store import Tree
from mctx.tree.verify import verify
from tests.runtime.small import place, text
from tests.tree.plain import BLOCK, MODEL, WINDOW, PlainReader
from tests.tree.test_faults import Failure, failing_at

WIDE = dataclasses.replace(MODEL, gist=dataclasses.replace(MODEL.gist, width=12))


@pytest.fixture
def other() -> PlainReader:
    """Models whose gists are wider."""
    return PlainReader(WIDE, seed=1)


def filled(read: PlainReader, fingerprint: str) -> Tree:
    """Text, documents, one of them replaced and one deleted, text again: 600 tokens and more."""
    tree = Tree.create(place(), tree_spec(read.model, fingerprint))
    ingest = Ingest(read, tree)
    for _ in ingest.feed(text(25 * WINDOW + 3 * BLOCK)):
        pass
    for seed, length in enumerate((70, 5, 150), 1):
        ingest.add_document(f"file {seed}", text(length, seed))
    ingest.replace_document("file 1", text(20, 9))
    ingest.delete_document("file 3")
    for _ in ingest.feed(text(9 * BLOCK, 4)):
        pass
    tree.commit()
    return tree


def assert_same(tree: Tree, expected: Tree) -> None:
    assert tree.spec == expected.spec and tree.length == expected.length
    np.testing.assert_array_equal(
        tree.tokens(0, tree.length), expected.tokens(0, expected.length)
    )
    np.testing.assert_array_equal(tree.dead, expected.dead)
    for level in range(1, tree.spec.levels + 1):
        every = np.arange(expected.count(level))
        assert tree.count(level) == len(every)
        np.testing.assert_array_equal(tree.gather(level, every), expected.gather(level, every))
    assert verify(tree.uri).problems == []


@pytest.fixture
def wanted(other) -> Tree:
    return filled(other, "others")


def test_what_a_rebuild_has_replaced_is_given_back(other):
    with Tree.create(place(), tree_spec(MODEL, "models")) as tree:
        for _ in Ingest(PlainReader(), tree).feed(text(25 * WINDOW)):
            pass
    rebuild(tree.uri, other, "others")
    gists = Tree.open(tree.uri).gather(1, np.arange(30))
    with Tree.open(tree.uri, "w") as remade:
        assert compact(remade, grace=0).wasted > 0
    left = open_kvstore(tree.uri).list().result()
    assert not any(key.startswith(b"epoch-00000001/") for key in left)
    np.testing.assert_array_equal(Tree.open(tree.uri).gather(1, np.arange(30)), gists)
    assert verify(tree.uri).problems == []
    with Tree.open(tree.uri, "w") as remade:
        assert compact(remade, grace=0).wasted == 0


def test_the_new_gists_are_those_the_new_models_make(other, wanted):
    uri = filled(PlainReader(), "models").uri
    known, told = Tree.open(uri), []
    before = known.gather(1, np.arange(30))
    with pytest.raises(TreeError, match="by models"):
        Tree.open(uri, fingerprint="others")
    assert rebuild(uri, other, "others", progress=lambda *at: told.append(at))
    assert_same(Tree.open(uri, fingerprint="others"), wanted)
    np.testing.assert_array_equal(known.gather(1, np.arange(30)), before)
    assert told[-1] == (wanted.blocks, wanted.blocks)
    with pytest.raises(TreeError, match="open it again"):
        known.refresh()
    assert not rebuild(uri, other, "others")


class Killed(BaseException):
    """Not an error that anything would mend."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_rebuild_that_was_killed_goes_on(other, wanted, monkeypatch, after):
    uri, calls = filled(PlainReader(), "models").uri, []
    remake = rebuilding._remake

    def counted(*arguments):
        calls.append(arguments[3])
        if len(calls) > after:
            raise Killed
        remake(*arguments)

    monkeypatch.setattr(rebuilding, "_remake", counted)
    with pytest.raises(Killed):
        rebuild(uri, other, "others", every=0)
    old = Tree.open(uri, fingerprint="models")
    assert_same(old, filled(PlainReader(), "models"))
    monkeypatch.setattr(
        rebuilding, "_remake", lambda *a: calls.append(a[3]) or remake(*a)
    )
    del calls[after:]
    assert rebuild(uri, other, "others", every=0)
    assert_same(Tree.open(uri), wanted)
    starts = np.concatenate(calls)
    assert len(starts) == len(np.unique(starts)), "a window was read again"


def test_a_rebuild_whose_storage_fails_leaves_the_old_gists_or_the_new(other, wanted):
    """At any step, before or after it was made; here every fifth."""
    before = filled(PlainReader(), "models")
    keys = before.kvstore.list().result()
    for step in itertools.count(0, 5):
        uri = place()
        for key in keys:
            value = before.kvstore.read(key).result().value
            open_kvstore(uri).write(key, value).result()
        try:
            with failing_at(step):
                rebuild(uri, other, "others", every=0)
        except Failure:
            seen = Tree.open(uri)
            assert_same(seen, before if seen.spec == before.spec else wanted)
            rebuild(uri, other, "others")
            assert_same(Tree.open(uri), wanted)
        else:
            break
    assert step > 10


def test_what_was_added_or_replaced_meanwhile_is_remade_too(other, monkeypatch):
    uri = filled(PlainReader(), "models").uri
    remake = rebuilding._remake

    def interrupted(change):
        calls = []

        def stop(*arguments):
            if calls:
                raise Killed
            calls.append(remake(*arguments))

        with monkeypatch.context() as patch:
            patch.setattr(rebuilding, "_remake", stop)
            with pytest.raises(Killed):
                rebuild(uri, other, "others", every=0)
        for read, place_ in ((PlainReader(), uri), (other, again.uri)):
            ingest = Ingest(read, Tree.open(place_, mode="w"))
            change(ingest)
            ingest.tree.commit()

    again = filled(other, "others")
    interrupted(lambda ingest: [None for _ in ingest.feed(text(6 * WINDOW, 7))])
    interrupted(lambda ingest: ingest.replace_document("file 1", text(30, 8)))
    assert rebuild(uri, other, "others")
    assert_same(Tree.open(uri), Tree.open(again.uri))


def test_models_that_cannot_read_the_tokens_are_refused():
    uri = filled(PlainReader(), "models").uri
    gist = dataclasses.replace(WIDE.gist, fanouts=(8, 4))
    wrong = PlainReader(dataclasses.replace(WIDE, gist=gist))
    with pytest.raises(TreeError, match="blocks of 4 and these models want 8"):
        rebuild(uri, wrong, "others")
    assert Tree.open(uri).head.epoch == 1
