"""The arithmetic to learn in: bfloat16 where the device has it, weights in float32 everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def compute_dtype(device: jax.Device | None = None) -> Any:
    """bfloat16 on a TPU and on a GPU that computes in it (Ampere and later), else float32.

    Networks take it as their `dtype` and keep their weights in float32, and so does the optimizer.
    """
    device = jax.devices()[0] if device is None else device
    if device.platform == "tpu":
        return jnp.bfloat16
    if device.platform != "gpu":
        return jnp.float32
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; AMD's are names
    old = capability[:1].isdigit() and float(capability) < 8.0
    return jnp.float32 if old else jnp.bfloat16


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Float leaves in another type. Gradients through it come back in the type they had.

    >>> cast({"w": jnp.ones(2), "n": jnp.ones(2, int)}, jnp.bfloat16)["w"].dtype.name
    'bfloat16'
    """
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
