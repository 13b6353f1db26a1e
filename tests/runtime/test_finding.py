"""What finders see in a session: what training shows the lens, however the history came to be."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.focus.bank import BankShape, read_history
from mctx.models.finder import nothing_found, width
from mctx.opened import Opened, fingerprint
from mctx.runtime import Session, SessionBatch, finding
from mctx.runtime.cache import BlockCache
from mctx.training.lens import bank_nodes
from mctx.tree.store import Tree
from tests import tiny
from tests.runtime import small
from tests.runtime.small import BLOCK, CONFIG, WINDOW, Compilations, place, reader, text

LENS = dataclasses.replace(tiny.LENS, finders=((0, 0), (1, 0)), find_query=4)
MODEL = dataclasses.replace(small.MODEL, lens=LENS)
FEATURES = width(LENS, MODEL.base)
PIECE = 8
LENGTH = 3 * PIECE * BLOCK + 2 * WINDOW  # more than three pieces


@functools.cache
def opened() -> Opened:
    lensnet = jax.device_put(tiny.drawn(MODEL, "lensnet"), jax.devices()[0])
    params = small.opened().params | {"lensnet": lensnet}
    return small.opened()._replace(model=MODEL, params=params, fingerprint=fingerprint(params))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(finding, "PIECE", PIECE)


def session(config=CONFIG, tree=None, **how) -> Session:
    return Session(opened(), tree or place(), config, reader=reader(), **how)


def found_by(made):
    return finding.found_by(made, made.query, made.blocks, made.dead_runs)


def found(made) -> np.ndarray:
    """Of every block: [blocks, F]."""
    every = np.arange(made.blocks)
    return found_by(made)(np.ones_like(every), every)


def anew(made, **how):
    """Found by another session, which has no keys yet, over what the first has committed."""
    return found(session(tree=Tree.open(made.tree.own.uri), **how))


def same(one, other):
    assert np.any(one)
    np.testing.assert_allclose(one, other, atol=1e-4)


def scores(made):
    heads = np.arange(made.config.heads)
    return jax.device_get(made.lens(made.focus, made.layouts, heads))


def test_a_session_finds_what_training_finds():
    tokens = text(LENGTH, seed=1)
    made = session()
    made.ingest(tokens)
    shape = BankShape(MODEL.gist, made.blocks)

    @jax.jit
    def trained_on(params, tokens):
        rows, states, _ = read_history(MODEL, params, tokens)
        query, distance = states[:, :, -LENS.query :], jnp.arange(shape.blocks)[None, ::-1]
        return bank_nodes(MODEL, shape, params, states, rows, query, distance, CONFIG.recent)

    nodes = trained_on(opened().params, tokens[None])
    got = found_by(made)(shape.node_level, shape.node_index)
    valid = np.asarray(nodes.valid[0])
    assert len(set(shape.node_level[valid])) > 2
    same(got[valid], np.asarray(nodes.found[0])[valid])
    # A block is described as its gist; what covers recent blocks, or is not there, by nothing.
    np.testing.assert_array_equal(got[: shape.blocks], got[shape.first_node[1] :][: shape.blocks])
    assert not np.any(found(made)[-CONFIG.recent :])
    beyond = found_by(made)(np.array([[3, 2]]), np.array([[99, -1]]))
    assert beyond.shape == (1, 2, FEATURES) and not np.any(beyond)


def test_in_pieces_at_once_and_as_it_comes_it_is_the_same(monkeypatch):
    tokens = text(LENGTH, seed=2)
    made = session()

    def read_again(_):
        raise AssertionError("ingest has told these keys")

    monkeypatch.setattr(made.cache, "keys", read_again)
    made.ingest(tokens[:7])
    made.predict(tokens[7:])
    assert made.finding.nbytes == 4 * PIECE * BLOCK * 2 * MODEL.base.head_dim * 4
    same(found(made), anew(made))
    monkeypatch.setattr(finding, "PIECE", 64)
    same(found(made), anew(made))
    # A session inside the history has found nothing of what comes later.
    made.seek(20)
    early = session()
    early.ingest(tokens[: 20 * BLOCK])
    same(found(made), found(early))


def test_sessions_that_share_a_cache_share_the_keys(monkeypatch):
    made = session()
    made.ingest(text(LENGTH, seed=2))
    wanted = found(made)
    monkeypatch.setattr(made.cache, "keys", None)  # nobody may ask for them again
    beside = session(dataclasses.replace(CONFIG, budget=CONFIG.budget // 2), made.tree,
                     cache=made.cache)
    same(found(beside), wanted)


def test_a_look_is_taken_once_a_refocus_and_counted(monkeypatch):
    looks, reports, plain = [], [], finding.Finding._by_block

    def counted(self, *asked):
        looks.append(asked)
        return plain(self, *asked)

    monkeypatch.setattr(finding.Finding, "_by_block", counted)
    staged = dataclasses.replace(CONFIG, staging=96, staging_capacity=48)
    made = session(staged, on_refocus=lambda _, report: reports.append(report))
    made.ingest(text(LENGTH, seed=3))
    assert len(looks) == len(reports) == 2
    operations = reports[1]["refocus/flops/find"]
    c, pieces = MODEL.base, -(-LENGTH // (PIECE * BLOCK))
    keys = LENS.find_query * c.n_heads * c.head_dim * PIECE * BLOCK * pieces
    asked = LENS.query * c.d_model * c.n_heads * c.head_dim
    assert 2 * 2 * keys < operations <= 2 * 2 * (keys + asked)


def test_documents_are_found_as_they_are_now():
    made = session()
    made.ingest(text(2 * WINDOW, seed=4))
    for name, seed in ("a", 5), ("b", 6), ("c", 7):
        made.add_document(name, text(3 * WINDOW, seed=seed))
    made.ingest(text(WINDOW, seed=8))
    before = found(made)
    same(before, anew(made))
    spans = made.tree.documents["a"], made.tree.documents["b"]
    a, b = (slice(span.start // BLOCK, span.stop // BLOCK) for span in spans)
    assert np.all(np.any(before[a], axis=1)) and np.all(np.any(before[b], axis=1))
    made.replace_document("a", text(3 * WINDOW, seed=9))  # in its place, in a piece that is full
    replaced = found(made)
    same(replaced, anew(made))
    assert np.abs(replaced - before)[a].max() > 1e-2
    made.delete_document("b")
    deleted = found(made)
    same(deleted, anew(made))
    assert not np.any(deleted[b]) and np.any(deleted[b.stop :])
    coarse = found_by(made)(np.array([2]), np.array([b.start // 4 + 1]))
    assert not np.any(coarse)  # all beneath is deleted


def test_mounted_trees_are_looked_over_and_gaps_are_not():
    book, own = text(5 * WINDOW, seed=10), text(3 * WINDOW, seed=11)
    mount = session()
    mount.ingest(book)
    made = session(mounts=[mount.tree.uri])
    made.ingest(own)
    gap = slice(len(book) // BLOCK, MODEL.gist.span(4) // BLOCK)
    got = found(made)
    assert not np.any(got[gap]) and np.any(got[: gap.start]) and np.any(got[gap.stop :])
    same(got, anew(made, mounts=[mount.tree.uri]))


def test_a_history_that_grows_compiles_nothing_anew():
    tokens = text(MODEL.gist.span(4) + 5 * WINDOW, seed=12)
    warm = session()
    warm.predict(tokens[: MODEL.gist.span(4) + 2 * BLOCK])
    made = session()
    counted = Compilations()
    made.predict(tokens)
    assert counted.count == 0
    assert len(tokens) > 10 * PIECE * BLOCK and np.any(found(made))


def test_an_opened_history_is_read_once(monkeypatch):
    made = session()
    made.ingest(text(LENGTH, seed=13))
    asked, plain = [], BlockCache.keys

    def counted(self, indices):
        asked.extend(indices.tolist())
        return plain(self, indices)

    monkeypatch.setattr(BlockCache, "keys", counted)
    nothing_held = dataclasses.replace(CONFIG, cache_bytes=0)
    other = session(nothing_held, Tree.open(made.tree.uri, mode="w"))
    same(found(other), found(made))
    assert asked == list(range(made.blocks - CONFIG.recent))
    other.predict(text(2 * WINDOW, seed=14))
    assert asked == list(range(made.blocks))  # but what ingest itself has read since


def test_a_session_that_is_saved_finds_the_same(tmp_path):
    made = session(tree=tmp_path / "tree")
    made.predict(text(LENGTH + 3, seed=15))
    made.save()
    shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    again = Session.load(opened(), tmp_path / "copy", reader=reader())
    np.testing.assert_array_equal(found(again), found(made))
    for got, want in zip(scores(again), scores(made), strict=True):
        np.testing.assert_array_equal(got, want)
    more = text(2 * WINDOW, seed=16)
    np.testing.assert_array_equal(again.predict(more), made.predict(more))


def test_nothing_is_found_where_nobody_looks():
    tokens = text(LENGTH, seed=17)
    blind = session(dataclasses.replace(CONFIG, find=False))
    blind.ingest(tokens)
    assert blind.finding is None
    np.testing.assert_array_equal(found(blind), nothing_found(MODEL, (blind.blocks,)))
    seeing = session()
    seeing.ingest(tokens)
    seeing.place(blind.layouts)
    assert np.abs(scores(seeing).own - scores(blind).own).max() > 1e-3
    plain = small.session()
    plain.ingest(tokens)
    assert plain.finding is None and found(plain).shape == (plain.blocks, 0)


def test_sessions_of_a_batch_find_each_their_own():
    batch = SessionBatch(opened(), [place(), place()], CONFIG, reader())
    for i, made in enumerate(batch.sessions):
        tokens, alone = text(LENGTH, seed=20 + i), session()
        made.ingest(tokens)
        alone.ingest(tokens)
        same(found(made), found(alone))
