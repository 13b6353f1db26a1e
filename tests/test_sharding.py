"""Where arrays lie on the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from mctx import sharding
from mctx.errors import UserError


def test_mesh_takes_all_devices_or_as_many_as_asked():
    assert dict(sharding.mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert sharding.mesh(data=1).size == 1


def test_working_contexts_in_turn_or_on_an_axis_of_their_own():
    x = jnp.arange(12.0).reshape(4, 3)
    mesh = sharding.mesh(fsdp=2, head=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "head": 2}
    assert sharding.batch_ways(mesh) == 4
    with jax.set_mesh(mesh):
        spread = jax.jit(lambda x: sharding.over_heads(jnp.cumsum, x))(x)
    assert spread.sharding.spec[0] == "head"
    np.testing.assert_array_equal(spread, sharding.over_heads(jnp.cumsum, x))


@pytest.mark.parametrize(
    ("rows", "axes"),
    [(16, ("data", "fsdp")), (4, ("fsdp",)), (6, ("data",)), (3, None)],
)
def test_rows_from_the_host_are_shared_out_over_as_many_devices_as_can_be(rows, axes):
    x = np.arange(3.0 * rows).reshape(rows, 3)
    with jax.set_mesh(sharding.mesh(data=2, fsdp=4)):
        squares = jax.jit(lambda x: sharding.by_rows({"x": x})["x"] ** 2)(x)
    assert squares.sharding.spec == (PartitionSpec(axes) if axes else PartitionSpec())
    np.testing.assert_array_equal(squares, x**2)
    np.testing.assert_array_equal(sharding.by_rows(x), x)  # without a mesh


@pytest.mark.parametrize("sizes", [(3, 3), (0, 1), (-1, 0), (-1, 9), (-2, 2), (2, 2, 3)])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(UserError, match="does not fit the 8 visible"):
        sharding.mesh(*sizes)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((4, 512, 1024), PartitionSpec(None, None, "fsdp")),
        ((1024, 511), PartitionSpec("fsdp")),
        ((1024, 1022), PartitionSpec("fsdp")),  # 1022 is larger than nothing that 4 divides
        ((1023, 1023), PartitionSpec()),
        ((512, 4), PartitionSpec()),  # small
        ((), PartitionSpec()),
    ],
)
def test_large_arrays_are_split_on_their_largest_divisible_axis(shape, spec):
    assert sharding.shard_large(shape, sharding.mesh(fsdp=4)) == spec


def test_without_fsdp_everything_is_replicated():
    assert sharding.shard_large((1024, 1024), sharding.mesh()) == PartitionSpec()


def test_placed_tree_is_split_and_unchanged():
    mesh = sharding.mesh(data=2, fsdp=4)
    tree = {"big": np.arange(2**19, dtype=np.float32).reshape(512, 1024), "small": np.arange(3)}
    placed = sharding.place(tree, mesh)
    assert placed["big"].addressable_shards[0].data.shape == (512, 256)
    assert placed["small"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, tree)


@given(st.integers(1, 4), st.sampled_from([(1, 1), (8, 1), (2, 4), (2, 2)]))
def test_batch_is_the_rows_in_order_split_over_all_devices(per_device, sizes):
    mesh = sharding.mesh(*sizes)
    size = per_device * mesh.size
    rows = sharding.local_rows(mesh, size)
    assert rows == slice(0, size)  # one process makes them all
    made = {"tokens": np.arange(size * 3).reshape(size, 3), "length": np.arange(size)}
    placed = sharding.place_batch(made, rows, mesh, size)
    jax.tree.map(np.testing.assert_array_equal, placed, made)
    assert {s.data.shape for s in placed["tokens"].addressable_shards} == {(per_device, 3)}


def test_what_all_devices_have_comes_to_the_host_once_and_as_it_is():
    mesh = sharding.mesh()
    x = np.arange(32.0).reshape(8, 4)
    for spec in PartitionSpec(), PartitionSpec("data"):
        came = sharding.to_host(jax.device_put(x, jax.NamedSharding(mesh, spec)))
        assert came.sharding.memory_kind == sharding.PINNED
        assert len(came.addressable_shards) == (8 if spec else 1)
        np.testing.assert_array_equal(np.asarray(came), x)
