"""Where training keeps its arrays: a mesh of devices, weights on it, and batches over it.

A layout is a function of a shape, so that whatever has the shape of a weight (its average, its
moments in the optimizer) lies as the weight does. Every axis of the mesh is a data axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Layout = Callable[[Mesh, tuple[int, ...]], PartitionSpec]
"""How an array of this shape lies on the mesh."""

SMALLEST = 2**14
"""Numbers in an array below which sharding it saves less than it costs to gather: 64 KiB."""


def all_devices() -> Mesh:
    """The mesh of every device there is, in every process, along one axis."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Every device holds the whole array: plain data parallelism."""
    return PartitionSpec()


def sharded(mesh: Mesh, shape: tuple[int, ...], smallest: int = SMALLEST) -> PartitionSpec:
    """Every device holds its part of the array: FSDP, ZeRO's stage 3 (arXiv 1910.02054).

    The longest axis that the devices divide evenly is cut, the last of several. An array with no
    such axis, or of fewer than `smallest` numbers, is replicated.

    >>> sharded(all_devices(), (3, 3, 256, 512)) == PartitionSpec(None, None, None, ("data",))
    True
    """
    even = [(length, axis) for axis, length in enumerate(shape) if length % mesh.size == 0]
    if not even or np.prod(shape) < smallest:
        return PartitionSpec()
    _, axis = max(even)
    return PartitionSpec(*(None,) * axis, mesh.axis_names)


def shardings(layout: Layout, mesh: Mesh, tree: PyTree) -> PyTree:
    """The sharding of every leaf of a pytree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, layout(mesh, leaf.shape)), tree)


def everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """A pytree of arrays on every device of the mesh, whole."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def whole(tree: PyTree) -> PyTree:
    """A pytree of arrays that lie on a mesh, whole on this process's first device, to be used by it
    alone. Every process must ask, for all of them bring their parts.
    """
    mesh = jax.tree.leaves(tree)[0].sharding.mesh
    gather = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(jnp.asarray, jax.device_get(gather(tree)))


def over_devices(mesh: Mesh, batches: dict[str, Any]) -> dict[str, jax.Array]:
    """Stacked batches (steps, parts, rows, ...), this process's rows of each, over the devices.

    Raises:
      ValueError: if the devices of this process cannot share the rows evenly.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, None, mesh.axis_names))
    here = len(mesh.local_devices)

    def put(name, leaf):
        rows = leaf.shape[2] if leaf.ndim > 2 else "no"
        if rows == "no" or rows % here:
            raise ValueError(
                f"a batch has {rows} rows of {name!r}, which {here} devices cannot share evenly: "
                f"make it a multiple of {here}, or train on fewer devices"
            )
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return {name: put(name, leaf) for name, leaf in batches.items()}
