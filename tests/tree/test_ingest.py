"""Ingest: in whatever pieces a text comes, the tree and the rows are the same (law 8)."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.focus.bank import make_bank
from mctx.models.wrapped import read_windows
from mctx.tree.ingest import BATCH, Ingest, Reader, tree_spec
from mctx.tree.store import Tree
from tests.runtime.small import BLOCK, MODEL, WINDOW, opened, place, reader, text
from tests.tiny import drawn

TEXT = text(7 * WINDOW + 9)


def ingest(pieces, stride):
    tree = Tree.create(place(), tree_spec(MODEL, opened().fingerprint))
    ingestion = Ingest(reader(), tree, stride)
    return tree, ingestion, [blocks for piece in pieces for blocks in ingestion.feed(piece)]


def joined(made):
    k, v = (np.concatenate([getattr(b, x) for b in made]) for x in "kv")
    return k, v, np.concatenate([b.states for b in made], axis=1)


def same_gists(tree, other):
    """Stored as bfloat16: what is equal to 1e-5 may round to neighbours."""
    for level in range(1, 5):
        every = np.arange(tree.count(level))
        got, want = (each.gather(level, every) for each in (tree, other))
        np.testing.assert_allclose(got, want, rtol=2**-7, atol=1e-4)


@pytest.fixture(scope="module")
def whole():
    tree, _, made = ingest([TEXT], 1)
    return tree, joined(made)


def test_rows_are_those_of_windows_read_on_their_own(whole):
    complete = len(TEXT) // WINDOW * WINDOW
    rows, states = read_windows(MODEL, opened().params, TEXT[None, :complete])
    for got, want in zip(whole[1][:2], rows, strict=True):  # [n, L, K_1, K, H], [L, 1, T, K, H]
        layers = want.shape[0]
        want = np.asarray(want)[:, 0].reshape(layers, -1, BLOCK, *want.shape[3:])
        np.testing.assert_allclose(got[: complete // BLOCK], want.swapaxes(0, 1), atol=1e-5)
    np.testing.assert_allclose(whole[1][2][:, :complete], states[:, 0], atol=1e-5)


def test_every_complete_node_is_in_the_tree_and_the_rest_waits(whole):
    tree, _ = whole
    assert tree.blocks == len(TEXT) // BLOCK
    for level in range(1, 5):
        assert tree.count(level) == tree.length // MODEL.gist.span(level)


@settings(max_examples=12, derandomize=True)
@given(st.lists(st.integers(0, len(TEXT)), max_size=12), st.sampled_from([1, 3]))
def test_any_pieces_make_the_same_tree(whole, cuts, stride):
    tree, ingestion, made = ingest(np.split(TEXT, sorted(cuts)), stride)
    np.testing.assert_array_equal(ingestion.waiting, TEXT[tree.length :])
    np.testing.assert_array_equal(tree.tokens(0, tree.length), TEXT[: tree.length])
    for got, want in zip(joined(made), whole[1], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    same_gists(tree, whole[0])


@pytest.mark.parametrize("stop", [WINDOW, WINDOW + BLOCK, 3 * WINDOW - BLOCK])
def test_a_tree_that_ends_inside_a_window_is_continued(whole, stop):
    tree, _, before = ingest([TEXT[:stop]], 1)
    after = list(Ingest(reader(), tree, 3).feed(TEXT[stop:]))
    for got, want in zip(joined([*before, *after]), whole[1], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_gists_that_keep_rows_are_those_of_a_bank_however_they_came():
    model = dataclasses.replace(MODEL, gist=dataclasses.replace(MODEL.gist, pools="rows"))
    params = {**opened().params, "gistnet": drawn(model, "gistnet")}
    complete = TEXT[: len(TEXT) // WINDOW * WINDOW]
    bank = jax.jit(functools.partial(make_bank, model))(params, complete[None])
    for piece in (len(complete), BLOCK):  # whole windows, and windows that grow
        tree = Tree.create(place(), tree_spec(model, "of rows"))
        for _ in Ingest(Reader(model, params), tree).feed(complete[:piece]):
            pass
        for _ in Ingest(Reader(model, params), tree).feed(complete[piece:]):
            pass
        for level, want in enumerate(bank.gists, 1):
            got = tree.gather(level, np.arange(tree.count(level)))
            np.testing.assert_allclose(got, want[0], rtol=2**-6, atol=1e-2)  # bfloat16


@pytest.mark.parametrize("rows", [0, WINDOW, 3 * WINDOW + BLOCK])
def test_rows_are_made_of_the_last_tokens_only_if_no_more_are_wanted(whole, rows):
    tree = Tree.create(place(), tree_spec(MODEL, opened().fingerprint))
    made = list(Ingest(reader(), tree).feed(TEXT, rows))
    held = [blocks for blocks in made if blocks.k is not None]
    assert any(blocks.k is None and blocks.states is None for blocks in made)
    k, v, states = joined(held)
    assert len(k) * BLOCK >= min(rows, len(TEXT) // BLOCK * BLOCK)
    assert len(k) * BLOCK < rows + (BATCH + 1) * WINDOW
    np.testing.assert_allclose(k, whole[1][0][-len(k) :], atol=1e-5)
    np.testing.assert_allclose(v, whole[1][1][-len(k) :], atol=1e-5)
    np.testing.assert_allclose(states, whole[1][2][:, -len(k) * BLOCK :], atol=1e-5)
    same_gists(tree, whole[0])


@pytest.mark.parametrize("rows", [0, None])
def test_windows_that_were_begun_and_not_taken_wait(whole, rows):
    tree = Tree.create(place(), tree_spec(MODEL, opened().fingerprint))
    ingestion = Ingest(reader(), tree)
    begun = ingestion.feed(TEXT, rows)
    next(begun)
    begun.close()
    assert 0 < tree.length < len(TEXT)
    np.testing.assert_array_equal(ingestion.waiting, TEXT[tree.length :])
    for _ in ingestion.feed(TEXT[:0], rows):
        pass
    assert tree.blocks == len(TEXT) // BLOCK
    same_gists(tree, whole[0])


@pytest.mark.parametrize("rows", [0, None])
def test_the_next_windows_are_read_while_what_was_made_of_some_is_stored(monkeypatch, rows):
    monkeypatch.setattr("mctx.tree.ingest.AT_ONCE", 4)
    long, begun = text(12 * WINDOW), []
    for name in "full_windows", "window_gists":
        read = getattr(reader(), name)
        monkeypatch.setattr(
            reader(), name, lambda some, read=read: begun.append(len(some)) or read(some)
        )
    tree = Tree.create(place(), tree_spec(MODEL, opened().fingerprint))
    stage, seen = tree.stage, []
    monkeypatch.setattr(tree, "stage", lambda *a: (seen.append(sum(begun)), stage(*a)))
    for _ in Ingest(reader(), tree).feed(long, rows):
        pass
    assert seen == [8 * WINDOW, 12 * WINDOW, 12 * WINDOW] and tree.length == len(long)
