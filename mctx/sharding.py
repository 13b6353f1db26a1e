"""One mesh, two axes, and the rule that says which parameter lies where (design: Scale).

Models know nothing of this: `jit` sees arguments that carry a NamedSharding and XLA inserts the
communication, on one device, on the devices of one host, or on a pod.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mctx.errors import UserError

Rule = Callable[[tuple[int, ...], Mesh], PartitionSpec]

LARGE = 2**18  # elements; below this a split costs more in messages than it saves in memory


def mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """The mesh ('data', 'fsdp') over the devices of every process; `data=-1` takes what is left.

    One process may use fewer devices than it sees; with several, every device must take part.
    Raises UserError when the sizes do not fit the devices.
    """
    devices = jax.devices()
    if data == -1 and fsdp > 0:
        data = len(devices) // fsdp
    wanted = data * fsdp
    fits = wanted == len(devices) if jax.process_count() > 1 else wanted <= len(devices)
    if data < 1 or fsdp < 1 or not fits:
        raise UserError(
            f"a mesh of data={data} × fsdp={fsdp} does not fit the {len(devices)} visible "
            "device(s): choose sizes whose product is that number, or data=-1."
        )
    # Linen cannot run under the Explicit axes that make_mesh gives by default.
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        devices=devices[:wanted],
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def shard_large(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rule: an array of LARGE elements or more is split over fsdp on its largest divisible axis."""
    ways = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or math.prod(shape) < LARGE or not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


def replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rule: every device holds the whole array."""
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh, rule: Rule = shard_large) -> Any:
    """The NamedSharding of every leaf (anything with a shape) of `tree`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, rule(np.shape(leaf), mesh)), tree)


def place(tree: Any, mesh: Mesh, rule: Rule = shard_large) -> Any:
    """Puts a tree, whole in every process, onto the mesh as `rule` says."""

    def put(leaf, sharding):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings(tree, mesh, rule))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch is split over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that hold all that this process's devices need."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [rows.indices(batch_size) for (rows,) in indices]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def place_batch(batch: dict[str, np.ndarray], rows: slice, mesh: Mesh, batch_size: int) -> dict:
    """Global arrays [batch_size, …] from `batch`, the `rows` of them that this process made."""
    sharding = batch_sharding(mesh)

    def put(local):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            return local[start - rows.start : stop - rows.start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: put(np.asarray(value)) for name, value in batch.items()}
