"""How far a network's answer is from what it should be: the distances that losses are made of."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Distance = Callable[[Float[Array, "b ..."], Float[Array, "b ..."]], Float[Array, ""]]
"""`distance(answer, truth)`, averaged over everything."""


def squared(answer: Float[Array, "b ..."], truth: Float[Array, "b ..."]) -> Float[Array, ""]:
    """Mean of `(a - t)^2`: the answer that minimizes it is the conditional mean, a denoiser."""
    return jnp.mean((answer - truth) ** 2)


def absolute(answer: Float[Array, "b ..."], truth: Float[Array, "b ..."]) -> Float[Array, ""]:
    """Mean of `|a - t|`: the answer that minimizes it is the conditional median."""
    return jnp.mean(jnp.abs(answer - truth))


def pseudo_huber(
    answer: Float[Array, "b ..."], truth: Float[Array, "b ..."], *, c: float = 0.1
) -> Float[Array, ""]:
    """Mean of `sqrt((a - t)^2 + c^2) - c` (arXiv 2310.14189, equation 7, elementwise): squared
    below c, absolute above.

    >>> float(pseudo_huber(jnp.zeros((1, 1)), jnp.full((1, 1), 3.0), c=4.0))
    1.0
    """
    return jnp.mean(jnp.sqrt((answer - truth) ** 2 + c**2) - c)
