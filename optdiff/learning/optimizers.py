"""Optimizers that a configuration can name and that optax leaves half to the user."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree

_RMS = 0.2
"""About an update's root mean square for a learning rate of 1, as large as Adam's (arXiv
2502.16982, section 2.2)."""


def muon(learning_rate: optax.ScalarOrSchedule, **options: Any) -> optax.GradientTransformation:
    """Muon for every kernel, convolutions included, and Adam for all else.

    The momentum of a kernel's gradient, as a matrix M of (inputs, outputs), is replaced by about
    the orthogonal `U V^T` of its singular value decomposition `U S V^T` (Jordan 2024; arXiv
    2502.16982, equation 4): all directions learn about equally fast. Convolutions (h, w, in, out)
    are (h w in, out). As optax has it, five Newton-Schulz steps leave singular values between
    about 0.5 and 1.5, both momenta are Nesterov's, and only kernels decay unless
    `adam_weight_decay` is given. Learning rates are those of AdamW.

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
    """Which axes of a kernel are inputs and which are outputs; None for what is no kernel: a leaf
    of another name, such as a bias, a scale or an embedding."""

    def axes(path, leaf):
        if leaf.ndim < 2 or getattr(path[-1], "key", None) != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
