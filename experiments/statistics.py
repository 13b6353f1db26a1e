"""Intervals: percentile bootstrap over segments, or over groups of them, seeded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Interval(NamedTuple):
    """A mean (or ratio of means) and its 95 % interval."""

    value: float
    low: float
    high: float


def interval(values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Of the mean of `values` [n]; resamples whole `groups` [n] where given."""
    return ratio(values, np.ones(len(values)), groups, seed)


def ratio(
    top: np.ndarray, bottom: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Of sum(top) / sum(bottom), resampled together: [n] and [n] (design: recovered)."""
    groups = np.arange(len(top)) if groups is None else groups
    _, member = np.unique(groups, return_inverse=True)
    count = member.max() + 1
    tops, bottoms = (np.bincount(member, x, minlength=count) for x in (top, bottom))
    drawn = np.random.default_rng(seed).integers(count, size=(DRAWS, count))
    ratios = tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(np.sum(top) / np.sum(bottom)), float(low), float(high))
