"""A flax module as a pytree: weights as leaves, by name, and everything else static.

So weights are arguments of the programs that use them, and never constants. What a module computes
is its own business.
"""

from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, PyTree


class _Structure:
    """A module without its weights, hashed once: jit asks at every call, and flax takes 10 ms."""

    def __init__(self, graphdef: nnx.GraphDef):
        self.graphdef, self._hash = graphdef, hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Structure):
            return NotImplemented
        return self is other or (self._hash, self.graphdef) == (other._hash, other.graphdef)


@partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["structure"])
@dataclass(frozen=True)
class Network:
    """A flax module as a pytree whose leaves are its weights, by name, and whose rest is static."""

    weights: PyTree[Array]
    structure: _Structure

    def module(self) -> nnx.Module:
        """The module with these weights. Ask inside jit, where it costs nothing at run time."""
        return nnx.merge(self.structure.graphdef, self.weights)


def network(module: nnx.Module) -> Network:
    """Split a module into its weights, which are shared with it, and its structure.

    >>> import jax.numpy as jnp
    >>> dense = network(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> dense.weights["kernel"].shape, dense.module()(jnp.ones((1, 2))).shape
    ((2, 3), (1, 3))
    """
    graphdef, state = nnx.split(module)
    return Network(nnx.to_pure_dict(state), _Structure(graphdef))
