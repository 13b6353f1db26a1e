"""The exact optimum that `bench allocator` measures the allocator by."""

from __future__ import annotations

import numpy as np

from mctx.focus.layout import FocusConfig, coarsest


def optimum(cfg: FocusConfig, blocks: int, gains: list[np.ndarray]) -> np.ndarray:
    """The largest utility of any legal layout of a history, for many cases at once: [cases].

    The utility of a layout is the sum of the gains of all nodes that it opens, that is, of nodes
    of the coarsest layout and below that it shows by what lies beneath them. Legal layouts tile
    the history with sinks and recent blocks as tokens and cost no more than the budget, by the
    costs and silent levels of the configuration. Rows are not counted: the capacity must hold
    every layout. Found by dynamic programming in float64: of each node, the best utility beneath
    it at each number of entries that can be spent there.

    Args:
      gains: by level from 1, [cases, nodes]: nats of opening a node; complete nodes only.
    """
    costs, cases = cfg.entry_costs, len(gains[0])
    spent, best = [np.array([costs[0]])], [np.zeros((cases, blocks, 1))]
    for level, gain in enumerate(gains, 1):
        k, nodes = int(cfg.children[level]), gain.shape[1]
        beneath = best[-1][:, : nodes * k].reshape(cases, nodes, k, -1)
        table = spent[-1], beneath[:, :, 0]
        for child in range(1, k):
            table = _join(table, (spent[-1], beneath[:, :, child]), cfg.budget)
        opened, utility = table[0], table[1] + gain[:, :, None]
        every = np.union1d(opened, costs[level])
        found = np.full((cases, nodes, len(every)), -np.inf)
        found[..., np.searchsorted(every, opened)] = utility
        closed = np.searchsorted(every, costs[level])
        found[..., closed] = np.maximum(found[..., closed], 0.0)
        spent.append(every)
        best.append(found)
    table = np.array([0]), np.zeros((cases, 1))
    for level, first, count in zip(*map(np.asarray, coarsest(cfg, blocks)), strict=True):
        for node in range(first, first + count):
            table = _join(table, (spent[level], best[level][:, node]), cfg.budget)
    return table[1].max(axis=-1)


def _join(one, other, budget):
    """Two tables (entries [p], utility [..., p]) of neighbours -> that of both together."""
    (few, short), (many, long) = sorted((one, other), key=lambda table: len(table[0]))
    sums = np.unique(np.add.outer(few, many))
    sums = sums[sums <= budget]
    found = np.full((*short.shape[:-1], len(sums)), -np.inf)
    for i, entries in enumerate(few):
        fits = many + entries <= budget
        at = np.searchsorted(sums, many[fits] + entries)
        found[..., at] = np.maximum(found[..., at], short[..., i : i + 1] + long[..., fits])
    return sums, found
