"""Optimizers that a configuration can name and that optax leaves half to the user."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree

_RMS = 0.2
"""An update's root mean square for a learning rate of 1, as large as Adam's (arXiv 2502.16982)."""


def muon(learning_rate: optax.ScalarOrSchedule, **options: Any) -> optax.GradientTransformation:
    """Muon for every kernel, convolutions included, and AdamW for all else.

    The momentum of a kernel's gradient, as a matrix M of (inputs, outputs), is replaced by the
    orthogonal `U V^T` of its singular value decomposition `U S V^T` (Jordan 2024; arXiv 2502.16982,
    equation 4): all directions learn equally fast. Convolutions (h, w, in, out) are
    (h w in, out). Learning rates are those of AdamW.

    Args:
      learning_rate: for kernels and all else.
      options: of `optax.contrib.muon`.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.zeros((3, 3, 2, 8)), "bias": jnp.zeros(8)}
    >>> optimizer = muon(1e-3)
    >>> grad = {"kernel": jnp.ones((3, 3, 2, 8)), "bias": jnp.ones(8)}
    >>> dparams, _ = optimizer.update(grad, optimizer.init(params), params)
    >>> dparams["kernel"].shape
    (3, 3, 2, 8)
    """
    return optax.contrib.muon(
        learning_rate,
        muon_weight_dimension_numbers=kernels,
        consistent_rms=_RMS,
        **options,
    )


def kernels(params: PyTree) -> PyTree:
    """Which axes of a kernel are inputs and which are outputs; None for what is no kernel."""

    def axes(path, leaf):
        if leaf.ndim < 2 or getattr(path[-1], "key", None) != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
