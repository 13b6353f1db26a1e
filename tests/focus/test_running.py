"""Running sums, maxima and sorting: as NumPy has them, at sizes around their blocks."""

import jax
import numpy as np
import pytest

from mctx.focus.running import at_most, largest, rising_order, running_count, running_max


@pytest.mark.parametrize("n", [1, 33, 1100])
def test_they_are_what_numpy_says(n):
    rng = np.random.default_rng(n)
    keys = rng.normal(size=n).astype(np.float32)
    for value in (-np.inf, np.inf, 0.0, -0.0, 1e-30):  # ties keep their order
        keys[rng.random(n) < 0.1] = value
    whole = rng.integers(0, 15000, (2, n))
    order, counts, most = jax.jit(lambda k, w: (rising_order(k), running_count(w), running_max(k)))(
        keys, whole
    )
    np.testing.assert_array_equal(order, np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(counts, np.cumsum(whole, axis=1))
    np.testing.assert_array_equal(most, np.maximum.accumulate(keys))


@pytest.mark.parametrize("number", [1, 200, 1100])
def test_the_largest_come_first_and_of_equals_the_first(number):
    keys = np.random.default_rng(number).integers(-20, 20, 1100).astype(np.float32)
    keys[keys == 7], keys[::5] = -np.inf, -0.0
    order = jax.jit(largest, static_argnums=1)(keys, number)
    np.testing.assert_array_equal(order, np.argsort(-keys, kind="stable")[:number])


def test_a_table_of_whole_numbers_says_what_a_search_would():
    rising = np.cumsum(np.random.default_rng(0).integers(0, 3, 500))
    table = jax.jit(at_most, static_argnums=1)(rising, 300)
    np.testing.assert_array_equal(table, np.searchsorted(rising, np.arange(300), side="right"))
