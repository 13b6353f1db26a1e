"""Rotary positions: only differences of positions count."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mctx.models import rope

LLAMA31 = rope.RopeScaling(8.0, 1.0, 4.0, 8192)
scalings = st.sampled_from([None, LLAMA31, rope.RopeScaling(32.0, 1.0, 4.0, 64)])
positions = st.integers(0, 4000)


def turned(x, position, freqs):
    """One head [H] at one position."""
    out = rope.rotate(jnp.asarray(x)[None, None, :], jnp.asarray([position]), freqs)
    return np.asarray(out[0, 0], np.float64)


@settings(max_examples=50)
@given(positions, positions, st.integers(0, 4000), st.sampled_from([2, 6, 64]), scalings)
def test_dot_products_depend_on_the_difference_alone(m, n, shift, width, scaling):
    rng = np.random.default_rng(width)
    q, k = rng.normal(size=(2, width)).astype(np.float32)
    freqs = rope.frequencies(width, 10_000.0, scaling)
    here = turned(q, m, freqs) @ turned(k, n, freqs)
    there = turned(q, m + shift, freqs) @ turned(k, n + shift, freqs)
    # Angles are float32: thousands of radians are known to about 5e-4.
    assert abs(here - there) < 2e-3 * np.linalg.norm(q) * np.linalg.norm(k)


@settings(max_examples=30)
@given(st.integers(1, 3000), st.sampled_from([2, 6, 64]))
def test_a_turn_keeps_lengths_and_is_undone_by_its_opposite(position, width):
    x = np.random.default_rng(position).normal(size=width).astype(np.float32)
    freqs = rope.frequencies(width, 10_000.0)
    out = turned(x, position, freqs)
    assert np.abs(out - x).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(out), np.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(turned(out.astype(np.float32), -position, freqs), x, atol=1e-5)


def test_position_zero_turns_nothing():
    x = jnp.arange(12.0).reshape(1, 1, 2, 6)
    out = rope.rotate(x, jnp.zeros((1, 1)), rope.frequencies(6, 500.0))
    np.testing.assert_array_equal(out, x)


def test_the_dtype_stays_and_angles_are_not_rounded_to_it():
    freqs = rope.frequencies(8, 10_000.0)
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    at = jnp.asarray([[1001]])  # bfloat16 would make it 1000
    out = rope.rotate(x, at, freqs)
    assert out.dtype == jnp.bfloat16
    exact = rope.rotate(x.astype(jnp.float32), at, freqs)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.01)


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    plain = rope.frequencies(128, 500_000.0)
    scaled = rope.frequencies(128, 500_000.0, LLAMA31)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4.0, wavelength > 8192 / 1.0
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~(short | long)
    assert between.any() and np.all(scaled[between] < plain[between])
    assert np.all(scaled[between] > plain[between] / 8)


@pytest.mark.parametrize(
    "width, theta, scaling",
    [
        (128, 500_000.0, LLAMA31),
        (64, 500_000.0, rope.RopeScaling(32.0, 1.0, 4.0, 8192)),
        (6, 10_000.0, rope.RopeScaling(8.0, 1.0, 4.0, 256)),
    ],
)
def test_llama3_frequencies_are_those_of_transformers(width, theta, scaling):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        head_dim=width,
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_window,
        },
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    np.testing.assert_allclose(rope.frequencies(width, theta, scaling), theirs, rtol=2e-6)
