"""Layouts: the coarsest tiling, arithmetic, entries, and what is refused (design: law 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.errors import UserError
from mctx.focus import layout as lay
from mctx.focus.layout import FocusConfig, LayoutError

fast = settings(max_examples=60)
initial = jax.jit(lay.initial, static_argnums=0)
entries = jax.jit(lay.entries, static_argnums=0)


def config(fanouts, **values):
    defaults = {"sink": 1, "recent": 3, "budget": 4096, "capacity": 512}
    return FocusConfig(fanouts=fanouts, **(defaults | values))


def coarsest_by_hand(cfg, blocks):
    """Greedy from the left: the widest whole node that starts here and has no guarded block."""
    nodes, block = [], 0
    low, high = min(cfg.sink, blocks), max(min(cfg.sink, blocks), blocks - cfg.recent)
    while block < blocks:
        fits = [
            level
            for level in range(1, cfg.levels + 1)
            if block % cfg.spans[level] == 0 and block >= low and block + cfg.spans[level] <= high
        ]
        level = max(fits, default=0)
        nodes.append((level, block // int(cfg.spans[level])))
        block += int(cfg.spans[level])
    return nodes


SHAPES = [
    config((2, 2, 2), recent=0),
    config((3, 2, 4), sink=5, recent=2),
    config((32, 8, 8)),
    config((4,), sink=0),
    config((4, 3, 2, 5), recent=7),
]


@fast
@given(cfg=st.sampled_from(SHAPES), blocks=st.integers(0, 300))
def test_initial_is_the_coarsest_tiling(cfg, blocks):
    layout = jax.device_get(initial(cfg, blocks))
    count = int(layout.count)
    assert list(
        zip(layout.level[:count].tolist(), layout.index[:count].tolist(), strict=True)
    ) == coarsest_by_hand(cfg, blocks)
    lay.check(cfg, layout, blocks)
    assert int(lay.entry_cost(cfg, layout).sum()) == lay.minimum_budget(cfg, blocks)
    assert np.all(np.asarray(layout.index[count:]) == -1)


def test_a_long_history_is_tiled_without_a_loop():
    cfg = FocusConfig(budget=4096, capacity=4096)
    lay.validate(cfg, 2**20)
    lay.check(cfg, initial(cfg, 2**20), 2**20)


def test_node_arithmetic():
    cfg = config((32, 8, 4))
    assert cfg.spans.tolist() == [1, 1, 8, 32]
    assert cfg.costs == (32, 1, 1, 1) and cfg.show == (True,) * 4
    level, index = jnp.array([0, 1, 2]), jnp.array([9, 9, 5])
    assert lay.span_blocks(cfg, level).tolist() == [1, 1, 8]
    assert lay.start_block(cfg, level, index).tolist() == [9, 9, 40]
    assert [a.tolist() for a in lay.parent(cfg, level, index)] == [[1, 2, 3], [9, 1, 1]]
    assert [a.tolist() for a in lay.first_child(cfg, level[1:], index[1:])] == [[0, 1], [9, 40]]


@fast
@given(blocks=st.integers(0, 90), silent=st.booleans())
def test_entries_are_the_shown_rows_in_time_order(blocks, silent):
    show = (True, not silent, True)
    cfg = config((4, 3), costs=(4, 2, 3), show=show, budget=128, capacity=64)
    layout = initial(cfg, blocks)
    rows = jax.device_get(entries(cfg, layout))
    expected = [
        (int(level), int(index), offset, rank)
        for rank, (level, index) in enumerate(coarsest_by_hand(cfg, blocks))
        for offset in range(cfg.entry_costs[level])
    ]
    used = int(rows.valid.sum())
    got = zip(*(a[:used].tolist() for a in rows[:4]), strict=True)
    assert list(got) == expected
    assert not np.any(rows.valid[used:])


def test_append_keeps_the_tiling_and_leaves_the_old_block_as_tokens():
    cfg = config((4, 3), budget=64, capacity=32, recent=2)
    layout = initial(cfg, 20)
    layout = lay.append(cfg, layout, 21, 7)
    lay.check(cfg, layout, 21)
    last = int(layout.count) - 1
    assert layout.level[last - 2 : last + 1].tolist() == [0, 0, 0]
    assert int(layout.born[last]) == 7


@pytest.mark.parametrize(
    ("values", "blocks", "says"),
    [
        ({"fanouts": (4, 1)}, 0, "Fanouts"),
        ({"fanouts": (4, 2**16, 2**16)}, 0, "drop a level"),
        ({"fanouts": (4,)}, 2**31, "31 bits"),
        ({"fanouts": (4, 3), "costs": (4, 1)}, 0, "costs and show"),
        ({"fanouts": (4, 3), "costs": (5, 1, 1)}, 0, "first fanout"),
        ({"fanouts": (4, 3), "costs": (4, 4, 1)}, 0, "fewer entries"),
        ({"fanouts": (4, 3), "costs": (4, 1, 0)}, 0, "at least one entry"),
        ({"fanouts": (4, 3), "show": (False, True, True)}, 0, "LOD0"),
        ({"fanouts": (4, 3), "cooldown": -1}, 0, "negative"),
        ({"fanouts": (4, 3), "budget": 20}, 60, "raise the budget"),
        ({"fanouts": (4, 3), "capacity": 20}, 90, "raise the capacity"),
    ],
)
def test_bad_configurations_are_refused_in_one_sentence(values, blocks, says):
    with pytest.raises(UserError, match=says):
        lay.validate(config(**values), blocks)


def test_the_smallest_budget_is_the_smallest_accepted():
    need = int(lay.minimum_budget(config((4, 3)), 60))
    lay.validate(config((4, 3), budget=need), 60)
    with pytest.raises(UserError, match="raise the budget"):
        lay.validate(config((4, 3), budget=need - 1), 60)


def test_minimum_budget_takes_many_lengths():
    cfg = config((4, 3, 2))
    lengths = np.arange(50)
    assert lay.minimum_budget(cfg, lengths).tolist() == [
        int(lay.minimum_budget(cfg, int(length))) for length in lengths
    ]


@pytest.mark.parametrize(
    ("row", "field", "value", "says"),
    [
        (3, "index", 9, "tile"),
        (0, "level", 1, "not LOD0"),
        (3, "shown", False, "not shown"),
        (3, "level", 7, "levels outside"),
    ],
)
def test_check_names_the_broken_law(row, field, value, says):
    cfg = config((4, 3))
    layout = initial(cfg, 30)
    broken = layout._replace(**{field: getattr(layout, field).at[row].set(value)})
    with pytest.raises(LayoutError, match=says):
        lay.check(cfg, broken, 30)
