"""Random keys: from a seed to a key, and from a key to one for each sample.

All randomness of optdiff comes from here, so that what a seed means is decided once.
"""

import operator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from optdiff.types import Keys

REFERENCE, FLOOR, CONDITION, COPY, REAL = (2**31 - k for k in (1, 2, 3, 4, 5))
"""Folded into a sample's key (or a seed, for COPY) for draws that are no step of a trajectory: real
data, a floor's, its condition, images that are made again, noise and kind of real digits. No run
has as many steps."""


def seed_key(seed: int) -> Key[Array, ""]:
    """The key of a seed: `jax.random.key(seed)` of all 64 bits, whether JAX has 64 bits or not,
    so that no two seeds share a key.

    Raises:
      ValueError: for a seed that is no whole number from 0 to 2^64 - 1.

    >>> bool(seed_key(1) == seed_key(1 + 2**32))
    False
    """
    with jax.enable_x64(True):
        return jax.random.key(np.uint64(checked_seed(seed)))


def checked_seed(seed: int) -> int:
    """The seed, if it is one: a whole number from 0 to 2^64 - 1.

    Raises:
      ValueError: if it is not.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise ValueError(f"a seed is a whole number from 0 to 2^64 - 1, not {seed!r}")
    return number


def sample_keys(seed: int, count: int, start: int = 0) -> Keys:
    """Keys of the samples `start` to `start + count` of a seed, `fold_in(seed_key(seed), index)`.

    An image depends on its seed and index alone, not on the batch it was made in.

    Raises:
      ValueError: for a seed that is none, or indices that are not from 0 to 2^32 - 1.

    >>> bool(sample_keys(0, 8)[5] == sample_keys(0, 3, start=3)[2])
    True
    """
    if not 0 <= start <= start + count <= 2**32:
        raise ValueError(f"samples are numbered 0 to 2^32 - 1, not {start} to {start + count - 1}")
    return _fold_indices(seed_key(seed), np.arange(start, start + count, dtype=np.uint32))


def own_keys(state: PyTree, key: Key[Array, ""]) -> PyTree:
    """A state whose keys are mixed with this one, for a sample whose noise shall be its own.

    Whatever keeps its randomness in its state, as `optax.add_noise` does, starts every sample and
    every seed alike. What is not a key stays.

    >>> state = {"key": jax.random.key(0), "count": jnp.zeros(())}
    >>> bool(own_keys(state, seed_key(1))["key"] == own_keys(state, seed_key(2))["key"])
    False
    """

    def mix(leaf):
        keys = as_keys(leaf)
        if keys is None:
            return leaf
        mixed = jax.vmap(lambda one: reduce(jax.random.fold_in, jax.random.key_data(key), one))
        keys = mixed(keys.reshape(-1)).reshape(keys.shape)
        return keys if keys.dtype == leaf.dtype else jax.random.key_data(keys)

    return jax.tree.map(mix, state)


def refuse_shared_keys(state: PyTree) -> None:
    """Refuse a state in which one key serves the whole batch.

    Raises:
      ValueError: saying what gives each sample a key.
    """
    keys = [as_keys(leaf) for leaf in jax.tree.leaves(state)]
    if any(one is not None and one.ndim == 0 for one in keys):
        raise ValueError(
            "the sampler keeps one random key for the whole batch, so that no sample would have "
            "noise of its own: wrap its transformation in `per_sample`"
        )


def check_keys(keys: Any) -> None:
    """Require one typed key for each sample.

    Raises:
      ValueError: for a single key, raw words as `PRNGKey` makes them, or no keys at all.
    """
    dtype = getattr(keys, "dtype", type(keys).__name__)
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed or keys.ndim != 1:
        raise ValueError(
            "keys are one key per sample, as `sample_keys(seed, count)` makes them, not "
            f"{dtype} of shape {np.shape(keys)}"
        )


def as_keys(leaf: Any) -> Key[Array, "..."] | None:
    """The keys that a leaf holds, if it does: typed ones, or raw words as `PRNGKey` makes them,
    which are known by their type and by how many make a key."""
    dtype = getattr(leaf, "dtype", np.dtype(float))
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return leaf
    if dtype != np.uint32:
        return None
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return jax.random.wrap_key_data(leaf) if leaf.shape[-1:] == words else None


_fold_indices = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
fold_in = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
