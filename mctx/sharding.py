"""One mesh and the rule that says which parameter lies where (design: Scale).

Models know nothing of this: `jit` sees arguments that carry a NamedSharding and XLA inserts the
communication, on one device, on the devices of one host, or on a pod.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
)

from mctx.errors import UserError

Rule = Callable[[tuple[int, ...], Mesh], PartitionSpec]

LARGE = 2**18  # elements; below this a split costs more in messages than it saves in memory
BATCH = ("data", "fsdp")  # the axes over which a batch is split
SHARES = (BATCH, ("fsdp",), ("data",))  # the ways to split rows
PINNED = "pinned_host"  # the kind of memory
HEAD = "head"  # the axis over which working contexts are, where there is one


def mesh(
    data: int = -1, fsdp: int = 1, head: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh ('data', 'fsdp'), and 'head' where `head` > 1; `data=-1` takes what is left.

    Args:
      devices: to lie on, perhaps another machine's; default: those of every process. One process
        may use fewer of its devices than it sees; with several, every device must take part.

    Raises UserError when the sizes do not fit the devices.
    """
    all_must = devices is not None or jax.process_count() > 1
    devices = list(jax.devices() if devices is None else devices)
    if data == -1 and fsdp > 0 and head > 0:
        data = len(devices) // (fsdp * head)
    sizes = (data, fsdp, head)
    wanted = math.prod(sizes)
    fits = wanted == len(devices) if all_must else wanted <= len(devices)
    if min(sizes) < 1 or not fits:
        raise UserError(
            f"a mesh of data={data} × fsdp={fsdp} × head={head} does not fit the {len(devices)} "
            "visible device(s): choose sizes whose product is that number, or data=-1."
        )
    axes = (*BATCH, HEAD)[: 3 if head > 1 else 2]
    # Linen cannot run under the Explicit axes that make_mesh gives by default.
    return jax.make_mesh(
        sizes[: len(axes)],
        axes,
        devices=devices[:wanted],
        axis_types=(AxisType.Auto,) * len(axes),
    )


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes over which a batch is split; none where that is into one part."""
    return BATCH if batch_ways(mesh) > 1 else ()


def over_heads(function: Callable, x: Any) -> Any:
    """`function` of each working context in x [H, …]: in turn, or each on its part of 'head'."""
    if HEAD not in jax.sharding.get_abstract_mesh().shape:
        return jax.lax.map(function, x)
    return jax.vmap(function, spmd_axis_name=HEAD)(
        jax.lax.with_sharding_constraint(x, PartitionSpec(HEAD))
    )


def shard_large(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rule: an array of LARGE elements or more is split over fsdp on its largest divisible axis."""
    ways = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or math.prod(shape) < LARGE or not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


def shardings(tree: Any, mesh: Mesh, rule: Rule = shard_large) -> Any:
    """The NamedSharding of every leaf (anything with a shape) of `tree`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, rule(np.shape(leaf), mesh)), tree)


def abstract(tree: Any, mesh: Mesh, rule: Rule = shard_large) -> Any:
    """Shapes and types of a tree, each with its place on the mesh."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(tree, mesh, rule),
    )


def whole(x: Any) -> Any:
    """Inside `jit`, a result that every process can read: the same on all devices of the mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def by_rows(tree: Any) -> Any:
    """Inside `jit`, arrays [n, …] whose rows are shared out, as a batch's are, over as many devices
    as n is a multiple of; what comes from the host would else be whole on every one of them."""
    mesh = jax.sharding.get_abstract_mesh()

    def shared(x):
        ways = {axes: math.prod(mesh.shape.get(axis, 1) for axis in axes) for axes in SHARES}
        fit = [axes for axes in SHARES if ways[axes] > 1 and x.shape[0] % ways[axes] == 0]
        if not fit:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(max(fit, key=ways.get)))

    return jax.tree.map(shared, tree)


def place(tree: Any, mesh: Mesh, rule: Rule = shard_large) -> Any:
    """Puts a tree, whole in every process, onto the mesh as `rule` says.

    Leaves that lie so already (what was read straight into its shards) stay where they are.
    """

    def put(leaf, sharding):
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings(tree, mesh, rule))


def beside(arrays: Any) -> Sharding:
    """Where something must be put to stand where these arrays on the device do, whole on each of
    their devices, and by name.

    For an array that was put nowhere by name JAX compiles a program anew, and what a program makes
    of named ones is named. So what is made for programs that will be given their own results again
    is put by name from the first.
    """
    where = jax.tree.leaves(arrays)[0].sharding
    return NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where


def put(arrays: Any, where: Sharding) -> Any:
    """Arrays put where programs expect them. Those that stand there stay as they are: JAX would
    look at each at length, which for a few blocks takes as long as to write them."""

    def there(x):
        return isinstance(x, jax.Array) and x.sharding == where

    leaves, tree = jax.tree.flatten(arrays)
    new = iter(jax.device_put([x for x in leaves if not there(x)], where))
    return jax.tree.unflatten(tree, [x if there(x) else next(new) for x in leaves])


@functools.cache
def numbers_to(where: Sharding) -> Callable[[Any], Any]:
    """A program that puts a few numbers of the host where programs expect them: to call it takes
    a fifth of `jax.device_put`. It is compiled for every new set of shapes."""

    def numbers(tree):
        return tree

    return jax.jit(numbers, out_shardings=where)


def to_host(x: jax.Array) -> jax.Array:
    """An array on its way from its devices to the host, for NumPy to have without another copy.

    It comes into page-locked memory, and once, of however many devices all have it whole. Into any
    other memory what is large comes slowly: on an H200 1.4 GB a second, where this way it is 30.
    """
    if x.is_fully_replicated:
        x = x.addressable_data(0)
    if PINNED not in {kind.kind for kind in next(iter(x.devices())).addressable_memories()}:
        x.copy_to_host_async()
        return x
    return jax.device_put(x, x.sharding.with_memory_kind(PINNED))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch is split over 'data' and 'fsdp'."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


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
