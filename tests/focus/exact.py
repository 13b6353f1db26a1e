"""Exact optimum of small working contexts by dynamic programming over the tree."""

from functools import cache

import jax
import numpy as np

from mctx.focus.allocator import opening, price
from mctx.focus.layout import coarsest, minimum_budget


@cache
def roots(cfg, blocks):
    """The nodes of the coarsest layout that may be expanded: `(level, index)`."""
    level, first, count = (np.asarray(a) for a in coarsest(cfg, blocks))
    return [
        (int(lv), int(f) + i)
        for lv, f, c in zip(level, first, count, strict=True)
        for i in range(int(c))
        if lv > 0
    ]


@cache
def spare(cfg, blocks):
    """Entries that the coarsest layout leaves unspent."""
    return cfg.budget - int(minimum_budget(cfg, blocks))


def layout_gain(cfg, blocks, layout, gain) -> float:
    """Sum of `gain[level][index]` over the nodes that a layout expands in the coarsest one."""
    layout = jax.device_get(layout)
    tops = set(roots(cfg, blocks))
    expanded = set()
    for level, index in zip(*(a[: int(layout.count)].tolist() for a in layout[:2]), strict=True):
        path = []
        while level < cfg.levels and (level, index) not in tops:
            level, index = level + 1, index // int(cfg.children[level + 1])
            path.append((level, index))
        if (level, index) in tops:
            expanded.update(path)
    return float(sum(gain[level][index] for level, index in expanded))


def optimum(cfg, blocks, gain) -> float:
    """Largest `layout_gain` of any layout within the budget, nodes of the coarsest excepted.

    Entries are the only resource (the capacity must not bind) and expanding never frees any.
    """
    entries, _ = opening(cfg)
    room = spare(cfg, blocks)

    def best(level, index):  # [room + 1]: best gain beneath with that many extra entries
        if level == 0:
            return np.zeros(room + 1)
        beneath = np.zeros(room + 1)
        k = int(cfg.children[level])
        for child in range(index * k, index * k + k):
            beneath = merge(beneath, best(level - 1, child))
        table, cost = np.zeros(room + 1), int(entries[level])
        if cost <= room:
            opened = gain[level][index] + beneath[: room + 1 - cost]
            table[cost:] = np.maximum(table[cost:], opened)
        return table

    total = np.zeros(room + 1)
    for level, index in roots(cfg, blocks):
        total = merge(total, best(level, index))
    return float(total[room])


def merge(a, b):
    """Best sum of two tables at every shared room: (max, +) convolution, both rising."""
    room = len(a)
    return np.max(
        [np.concatenate([np.full(s, -np.inf), a[: room - s] + b[s]]) for s in range(room)], 0
    )


def density_labels(cfg, gain):
    """Utilities from true gains: the best gain per entry of any subtree opened from a node.

    Found by bisection on the price of an entry at which opening the node breaks even, then
    turned into nats by the allocator's price of the node.
    """
    prices = price(cfg).astype(float)

    def worth(rate, level, index):
        if level == 0:
            return 0.0
        k = int(cfg.children[level])
        beneath = sum(max(0.0, worth(rate, level - 1, index * k + c)) for c in range(k))
        return gain[level][index] - rate * prices[level] + beneath

    labels = [*gain[:2], *(np.zeros_like(g) for g in gain[2:])]  # beneath a block is nothing
    for level in range(2, len(gain)):
        for index in range(len(gain[level])):
            low, high = 0.0, float(np.max(gain[1])) + 1.0
            for _ in range(20):
                rate = (low + high) / 2
                low, high = (rate, high) if worth(rate, level, index) > 0 else (low, rate)
            labels[level][index] = low * prices[level]
    return labels
