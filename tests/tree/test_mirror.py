"""The mirror keeps each gist once, whoever read it first."""

import numpy as np

from mctx.tree.mirror import Mirror


def rows_of(indices: np.ndarray) -> np.ndarray:
    return (indices[:, None, None] * 2 + 1).astype(np.uint16)


def test_two_who_miss_the_same_rows_at_once_store_them_once():
    mirror = Mirror(1, (1, 1), np.dtype(np.uint16))

    def read_while_another_reads(missing: np.ndarray) -> np.ndarray:
        mirror.gather(1, np.array([4, 6]), rows_of)
        return rows_of(missing)

    found = mirror.gather(1, np.array([5, 4, 5]), read_while_another_reads)
    assert found.ravel().tolist() == [11, 9, 11]
    assert len(mirror) == 3


def test_levels_are_apart():
    mirror = Mirror(2, (1, 1), np.dtype(np.uint16))
    mirror.gather(1, np.array([3]), rows_of)
    other = mirror.gather(2, np.array([3]), lambda missing: rows_of(missing) + 100)
    assert other.item() == 107
