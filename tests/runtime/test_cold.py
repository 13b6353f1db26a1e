"""Nodes that are not in memory: waited for, or shown otherwise until they are here."""

import dataclasses
import errno
import os
import threading

import jax
import numpy as np
import pytest

from mctx.focus.layout import Layout
from mctx.runtime.storeys import Disk, Memory
from mctx.runtime.windows import Windows
from mctx.tree.store import Tree
from tests.runtime.small import (
    BLOCK,
    CONFIG,
    MODEL,
    WINDOW,
    Compilations,
    reader,
    session,
    text,
    worths,
)

TEXT = text(16 * WINDOW, seed=1)
TAIL = text(9, seed=5)
BLOCK_BYTES = 2 * 4 * MODEL.base.n_layers * BLOCK * MODEL.base.n_kv_heads * MODEL.base.head_dim
HIDDEN = (True, False, True, True, True)


@pytest.fixture(scope="module")
def tree():
    made = session()
    made.ingest(TEXT)
    made.tree.close()
    return made.tree.uri


def over(uri, reports=None, **changes):
    """A session with nothing in memory, over a tree that it only reads."""
    how = {"on_refocus": lambda _, report: reports.append(report)} if reports is not None else {}
    config = dataclasses.replace(CONFIG, **changes)
    return session(config, Tree.open(uri), worths=worths(1), **how)


def nodes(layouts):
    one = Layout(*(np.asarray(x)[0] for x in layouts))
    live = slice(0, int(one.count))
    return np.stack([one.level[live], one.index[live], one.shown[live]])


def rows_of(made):
    """What the first head's buffer says that it holds, in any order."""
    keys = made.assembly._keys[0]
    return sorted(keys[keys >= 0].tolist())


def settle(made):
    """Refocuses until the layout wants nothing new, and all it wants is here."""
    for _ in range(4):
        made.cache.take_up(wait=True)
        made.refocus()


@pytest.mark.parametrize("show", [(), HIDDEN])
def test_a_cold_block_is_shown_by_its_gist_or_not_at_all_until_it_is_here(tree, show):
    reports = []
    warm = over(tree, show=show)
    made = over(tree, reports, cold="async", show=show)
    np.testing.assert_array_equal(nodes(made.layouts), nodes(warm.layouts))  # as decided
    wanted, shown = nodes(made.layouts), nodes(made.shown)
    other = np.any(wanted != shown, axis=0)
    first = reports[0]
    name, silent = ("cold_silent", "cold_by_gist") if show else ("cold_by_gist", "cold_silent")
    assert first[f"refocus/{name}"] == other.sum() > 2 and first[f"refocus/{silent}"] == 0
    assert np.all(wanted[0, other] == 0) and np.all(shown[0, other] == 1)
    np.testing.assert_array_equal(shown[1], wanted[1])
    # The buffer holds exactly what is shown, as if that had been the layout.
    assert rows_of(made) == sorted(made.assembly.wanted(Layout(*(x[0] for x in made.shown))))
    warm.place(made.shown)
    np.testing.assert_allclose(made.peek(TAIL), warm.peek(TAIL), atol=1e-5)
    settle(made)
    np.testing.assert_array_equal(nodes(made.shown), nodes(made.layouts))
    warm.place(made.layouts)
    np.testing.assert_allclose(made.peek(TAIL), warm.peek(TAIL), atol=1e-5)


def test_decoding_does_not_wait_for_a_window_that_is_read(tree, monkeypatch):
    go, threads, plain = threading.Event(), [], Windows.read
    made = session(dataclasses.replace(CONFIG, cold="async"), worths=worths(1))
    made.ingest(TEXT)
    made.cache.drop()
    made.assembly.forget()

    def slow(self, blocks):
        threads.append(threading.current_thread().name)
        if threads[-1].startswith("windows"):
            go.wait(20)
        return plain(self, blocks)

    monkeypatch.setattr(Windows, "read", slow)
    made.refocus()
    assert np.all(np.isfinite(made.read_tokens(TEXT[: 3 * BLOCK])))
    assert any(name.startswith("windows") for name in threads)
    assert not np.array_equal(nodes(made.shown), nodes(made.layouts))
    go.set()
    settle(made)
    np.testing.assert_array_equal(nodes(made.shown), nodes(made.layouts))


def test_a_document_that_is_replaced_while_its_window_is_read_is_not_taken_in(monkeypatch):
    made = session()
    for name in "ab":
        made.add_document(name, text(2 * WINDOW, seed=ord(name)))
    windows, plain = Windows(reader(), made.tree), Windows._tokens

    def replaced(self, *where):
        made.ingestion.replace_document("a", text(2 * WINDOW, seed=9))
        return plain(self, *where)

    monkeypatch.setattr(Windows, "_tokens", replaced)
    last = made.tree.blocks - 1
    found, count = windows.read(np.array([0, last]))
    assert count == 2 and len(found) == WINDOW // BLOCK
    assert {one.address for one in found} <= set(windows.addresses(np.arange(last - 7, last + 1)))


@pytest.mark.parametrize("tail", ["window", "keep"])
def test_a_block_that_leaves_the_recent_ones_is_not_waited_for(tail, monkeypatch):
    config = dataclasses.replace(CONFIG, cold="async", tail=tail, recent=3)
    made = session(config, worths=lambda made: np.arange(1.0, made.blocks + 1))
    made.predict(TEXT[: 5 * WINDOW])
    made.cache.drop()
    plain, where = Windows.begin, []

    def begin(self, blocks):
        where.append(threading.current_thread())
        return plain(self, blocks)

    monkeypatch.setattr(Windows, "begin", begin)
    made.predict(TEXT[: 2 * BLOCK])
    made.cache.take_up(wait=True)
    assert threading.main_thread() not in where


def test_all_windows_that_a_refocus_misses_are_read_at_once(tree, monkeypatch):
    calls, made = [], over(tree)
    plain = reader().full_windows
    made.cache.drop()
    made.assembly.forget()
    monkeypatch.setattr(
        reader(), "full_windows", lambda tokens: calls.append(len(tokens)) or plain(tokens)
    )
    made.refocus()
    assert len(calls) == 1 and calls[0] > 2 * WINDOW


STOREYS = [
    dict(cache_bytes=0),
    dict(device_bytes=4 * BLOCK_BYTES, cache_bytes=2 * BLOCK_BYTES),
    dict(cache_bytes=2 * BLOCK_BYTES, disk_bytes=8 * BLOCK_BYTES),
]


@pytest.mark.parametrize("storeys", STOREYS)
def test_where_rows_are_held_changes_nothing_that_is_read(storeys, tmp_path):
    plain = session(worths=worths(3))
    want = plain.predict(TEXT[: 6 * WINDOW])
    config = dataclasses.replace(CONFIG, **storeys, disk_folder=str(tmp_path))
    made = session(config, worths=worths(3))
    np.testing.assert_allclose(made.predict(TEXT[: 6 * WINDOW])[1:], want[1:], atol=1e-5)
    far = np.arange(3)
    held = jax.tree.map(np.asarray, made.cache.fetch(far))
    before = made.cache.windows_read
    again = jax.tree.map(np.asarray, made.cache.fetch(far))
    jax.tree.map(np.testing.assert_array_equal, again, held)
    roomy = storeys.get("disk_bytes", 0) + storeys.get("device_bytes", 0)
    assert (made.cache.windows_read == before) == bool(roomy)


def test_a_full_disk_holds_no_more_and_ends_nothing(monkeypatch):
    room, write = 2 * 96, os.pwrite

    def pwrite(file, data, at):
        if at + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    pairs = [(np.full((2, 3), i), np.full((2, 3), -i)) for i in range(6)]
    held = Disk(4 * 96)
    for i, pair in enumerate(pairs):
        held.put(i, pair)
        assert len(held) <= 2
    assert [i for i in range(6) if i in held] == [4, 5]
    jax.tree.map(np.testing.assert_array_equal, tuple(held.get(5)), pairs[5])
    room = 0
    none = Disk(4 * 96)
    none.put(0, pairs[0])
    none.put(1, pairs[1])
    assert len(none) == 0 and none.get(0) is None


def test_windows_that_have_landed_are_taken_from_the_host_and_compile_nothing():
    made = session()
    made.ingest(text(7 * WINDOW, seed=1))
    for count in (2, 3, 7):
        read = made.cache._windows.begin(np.arange(count) * WINDOW // BLOCK)
        address = list(read.places)[-1]
        before = jax.tree.map(np.asarray, read.pair(address))
        read.found()
        compiled = Compilations()
        after = read.pair(address)
        assert not compiled.count and all(isinstance(x, np.ndarray) for x in after)
        jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("storey", [Memory, Disk])
def test_a_storey_holds_what_was_used_last_within_its_bytes(storey):
    pairs = [(np.full((2, 3), i), np.full((2, 3), -i)) for i in range(9)]
    held = storey(4 * 96)
    for i, pair in enumerate(pairs):
        held.put(i, pair)
        held.get(0)
        if storey is Memory:
            held.trim()
    assert len(held) == 4 and {i for i in range(9) if i in held} == {0, 6, 7, 8}
    for i in (0, 7):
        jax.tree.map(np.testing.assert_array_equal, tuple(held.get(i)), pairs[i])
    assert held.get(1) is None
    held.clear()
    assert len(held) == 0 and held.get(0) is None
