"""Operations are counted as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mctx.flops import flops
from mctx.models.wrapped import read
from tests import tiny


def test_a_product_is_two_operations_a_term():
    assert flops(jnp.dot, np.zeros((3, 5)), np.zeros((5, 7))) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_wrappers_change_nothing_but_a_batch(wrap):
    x, y = np.zeros((4, 3, 5)), np.zeros((4, 5, 7))
    assert flops(wrap(jnp.matmul), x, y) == 4 * 2 * 3 * 5 * 7


def test_a_scan_counts_every_turn():
    def step(x, w):
        return x @ w, None

    x, w = np.zeros((2, 6)), np.zeros((11, 6, 6))
    assert flops(lambda x, w: jax.lax.scan(step, x, w)[0], x, w) == 11 * 2 * 2 * 6 * 6


def test_a_backward_pass_costs_twice_the_forward():
    def loss(w, x):
        return jnp.sum((x @ w) ** 2)

    w, x = np.zeros((6, 4)), np.zeros((8, 6))
    assert flops(jax.grad(loss, argnums=(0, 1)), w, x) == 3 * flops(loss, w, x)


def test_the_base_costs_what_its_shape_says():
    model, params = tiny.MODEL, tiny.params()
    tokens, c = np.zeros((2, 64), np.int32), tiny.BASE
    per_token = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads) + 3 * c.d_model * c.d_ff
    attention = 2 * 64 * c.n_heads * c.head_dim  # scores and their sum, every key counted
    positions = np.broadcast_to(np.arange(64), (2, 64))
    counted = flops(lambda p, t, q: read(model, p, t, q).hidden, params, tokens, positions)
    assert counted == 2 * 2 * 64 * c.n_layers * (per_token + attention)
