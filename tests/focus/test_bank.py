"""Banks: law 2, and that a mask over a bank is the gather that the runtime makes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.errors import UserError
from mctx.focus import layout
from mctx.focus.bank import (
    BankShape,
    context_of,
    focus_for,
    make_bank,
    packed_context,
    shown_nodes,
)
from mctx.models.attention import NEGATIVE
from mctx.models.base import Context, Rows, token_nll
from mctx.models.wrapped import read, tail_nll
from mctx.training.shown import Mixture, allocated, descend, most_rows, node_utility, one_level
from tests.tiny import BASE, GIST, MODEL, params, tokens

B, TAIL = 2, 7
P = len(BASE.prefix)
SHAPE = BankShape(GIST, 8)  # two ingest windows
HISTORY = tokens(B, 32)
FOCUS = focus_for(GIST, sink=1, recent=1, budget=20, capacity=16, max_edits=16)


@pytest.fixture(scope="module")
def bank():
    return jax.jit(lambda t: make_bank(MODEL, params(), t))(HISTORY)


@pytest.fixture(scope="module")
def nll():
    return jax.jit(lambda tail, context, start: tail_nll(MODEL, params(), tail, context, start))


@pytest.fixture(scope="module")
def layouts():
    """Two layouts of the real allocator."""
    table = jax.random.exponential(jax.random.key(3), (B, SHAPE.blocks))
    return jax.jit(lambda table: descend(SHAPE, FOCUS, table))(table)


@pytest.fixture(scope="module")
def shown(layouts):
    """[B, N], the nodes that they show."""
    shown = shown_nodes(SHAPE, layouts)
    assert not np.array_equal(shown[0], shown[1])
    return shown


@pytest.mark.parametrize("window", [0, 1])
def test_all_lod0_of_one_window_is_the_base_itself(bank, nll, window):
    """Law 2; and a window's rows know nothing of the windows beside it."""
    tail = tokens(B, TAIL + 1, seed=1)
    in_window = SHAPE.node_block * GIST.block // MODEL.window == window
    everything = jnp.broadcast_to((SHAPE.node_level == 0) & in_window, (B, len(in_window)))
    got = nll(tail, *context_of(SHAPE, bank, everything))

    prefix = jnp.broadcast_to(jnp.asarray(BASE.prefix, jnp.int32), (B, P))
    history = HISTORY[:, window * MODEL.window :][:, : MODEL.window]
    whole = jnp.concatenate([prefix, history, tail], axis=1)
    positions = jnp.broadcast_to(jnp.arange(whole.shape[1]), whole.shape)
    hidden = jax.jit(lambda t, p: read(MODEL, params(), t, p).hidden)(whole, positions)
    own = token_nll(params()["base"], hidden[:, :-1], whole[:, 1:])[:, -TAIL:]
    np.testing.assert_allclose(got, own, atol=1e-4)


def test_a_mask_equals_a_gather_of_the_same_rows_in_any_order(bank, nll, shown):
    tail = tokens(B, TAIL + 1, seed=2)
    context, start = context_of(SHAPE, bank, shown)
    whole = nll(tail, context, start)
    rng = np.random.default_rng(0)
    for row in range(B):
        seen = rng.permutation(np.flatnonzero(np.asarray(context.bias[row]) > NEGATIVE / 2))
        gathered = Context(
            Rows(*(x[:, row : row + 1, seen] for x in context.rows)),
            context.positions[row : row + 1, seen],
            jnp.zeros((1, len(seen))),
        )
        got = nll(tail[row : row + 1], gathered, start[row : row + 1])
        np.testing.assert_allclose(got, whole[row : row + 1], atol=1e-4)


def test_what_is_silent_is_not_read(bank, nll, shown):
    tail = tokens(B, TAIL + 1, seed=2)
    context, start = context_of(SHAPE, bank, shown)
    silent = context.bias < NEGATIVE / 2  # [B, P + R]
    noisy = context._replace(
        rows=Rows(*(jnp.where(silent[None, :, :, None, None], 9.0, x) for x in context.rows))
    )
    np.testing.assert_array_equal(nll(tail, context, start), nll(tail, noisy, start))


@pytest.mark.parametrize("row", range(B))
def test_positions_are_contiguous_and_in_the_order_of_the_layouts_entries(
    bank, layouts, shown, row
):
    """The shown rows of the bank are exactly the entries of the layout, at their ranks."""
    one = jax.tree.map(lambda x: x[row], layouts)
    layout.check(FOCUS, one, SHAPE.blocks)
    entries = jax.tree.map(np.asarray, layout.entries(FOCUS, one))
    wanted = np.stack(entries[:3], axis=1)[entries.valid]  # level, index, offset
    assert {0, 1} <= set(wanted[:, 0])  # both tokens and gists are shown

    context, start = context_of(SHAPE, bank, shown)
    positions = np.asarray(context.positions[row])
    seen = np.flatnonzero(np.asarray(context.bias[row, P:]) > NEGATIVE / 2)
    order = seen[np.argsort(positions[P:][seen])]
    node = SHAPE.row_node[order]
    offset = order - np.searchsorted(SHAPE.row_node, node)
    got = np.stack([SHAPE.node_level[node], SHAPE.node_index[node], offset], axis=1)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(positions[:P], np.arange(P))
    np.testing.assert_array_equal(positions[P:][order], P + np.arange(len(order)))
    assert int(start[row]) == P + len(order)


@pytest.mark.parametrize("room", [0, 9])
def test_a_packed_context_reads_the_same(bank, layouts, shown, nll, room):
    """What is hidden is not read; its gradient reaches the rows that are shown and no others."""
    rows = shown[:, SHAPE.row_node]
    most = int(rows.sum(axis=1).max())
    tail = tokens(B, TAIL + 1, seed=1)
    wanted = nll(tail, *context_of(SHAPE, bank, shown))
    np.testing.assert_allclose(
        nll(tail, *packed_context(SHAPE, bank, shown, most + room)), wanted, atol=1e-5
    )

    def read_values(values):
        put = bank._replace(rows=bank.rows._replace(v=values))
        return tail_nll(
            MODEL, params(), tail, *packed_context(SHAPE, put, shown, most + room)
        ).sum()

    moved = np.abs(jax.jit(jax.grad(read_values))(bank.rows.v)).max(axis=(0, 3, 4)) > 0
    np.testing.assert_array_equal(moved, rows)


@pytest.mark.parametrize("recent", [(0,), (0, 1, 3)])
def test_no_layout_of_training_shows_more_rows_than_it_says(recent):
    """And those of one level tile the last blocks before their end, none twice, none left out."""
    mixture = Mixture((0.4, 0.3, 0.3), recent)
    most = most_rows(SHAPE, FOCUS, mixture)
    draw = jax.jit(lambda key, end: one_level(SHAPE, mixture, key, 64, end))
    covers = SHAPE.node_block[:, None] <= np.arange(SHAPE.blocks)
    covers &= np.arange(SHAPE.blocks) < (SHAPE.node_block + SHAPE.spans[SHAPE.node_level])[:, None]
    for end in range(4, SHAPE.blocks + 1):
        shown = np.asarray(draw(jax.random.key(end), end))
        assert shown[:, SHAPE.row_node].sum(axis=1).max() <= most
        times = shown.astype(int) @ covers  # [B, blocks]
        assert (times[:, end - 1] == 1).all() and not times[:, end:].any()
        assert (np.diff(times[:, :end], axis=1) >= 0).all()
    real = jax.jit(lambda key: allocated(SHAPE, FOCUS, key, 8))(jax.random.key(1))
    assert real[:, SHAPE.row_node].sum(axis=1).max() <= most


def test_levels_not_trained_are_silent():
    focus = focus_for(dataclasses.replace(GIST, trained=1, slots=2), budget=20)
    assert focus.show == (True, True, False, False)
    assert focus.costs == (4, 2, 2, 2)


def test_only_complete_nodes_are_in_a_bank():
    shape = BankShape(GIST, 7)
    assert shape.counts() == [7, 7, 3, 1]
    assert len(shape.row_node) == 7 * 4 + 7 + 3 + 1


def test_a_node_is_worth_the_best_beneath_it():
    blocks = jnp.array([[3.0, -1.0, -5.0, -2.0, 0.0, 7.0, 1.0, 1.0]])
    expected = [*blocks[0], *blocks[0], 3, -2, 7, 1, 3, 7]
    np.testing.assert_array_equal(node_utility(SHAPE, blocks)[0], expected)


def test_levels_past_the_end_of_show_are_as_its_last():
    deep = dataclasses.replace(GIST, fanouts=(4, 2, 2), trained=2)

    def shown(show):
        return focus_for(deep, budget=64, capacity=32, sink=1, recent=1, show=show).show

    assert shown((True, False)) == (True, False, False, False)
    assert shown((True,)) == shown(()) == (True, True, True, False)
    with pytest.raises(UserError, match="names 5 levels"):
        shown((True,) * 5)
