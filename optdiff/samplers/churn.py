"""EDM's churn: before each step, raise the noise level a little with fresh noise.

The denoiser is evaluated at the raised levels only, so those are the levels of our grid, and churn
is `renoise`: step to the level below, then raise it. No evaluation is spent on it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from optdiff.samplers.renoise import Down, renoise
from optdiff.types import Levels, Sampler, within


@within(s_max="[0, inf]")
def churn(
    inner: Sampler,
    gamma: float | Float[Array, ""] = 0.2,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float | Float[Array, ""] = 1.003,
) -> Sampler:
    """EDM's stochastic sampler (arXiv 2206.00364, algorithm 2) with `inner` for its Heun, on a grid
    that names the raised levels: `renoise(inner, churn_down(gamma, s_min, s_max), s_noise)`.

    The paper's grid `t_i` is `churned(t, gamma, s_min, s_max)` here, its gamma
    `min(S_churn / N, sqrt(2) - 1)` for N evaluated levels. Any other grid is as good: its levels
    are read as the raised ones. Evaluations as `inner`; affine if `inner` is. It converges if gamma
    falls with the steps, as the paper's does; at a fixed one a bias of `inner` stays.

    Args:
      inner: takes the steps down; `heun()` in the paper.
      gamma: by how much, relative to the level below; 0 is `inner`.
      s_min, s_max: levels outside of these are not raised.
      s_noise: multiplies the noise; the paper raises it where denoisers remove too much.

    >>> from optdiff.samplers import heun
    >>> sampler = churn(heun(), gamma=0.2)
    """
    return renoise(inner, churn_down(gamma, s_min, s_max), s_noise)


@within(gamma="[0, inf)", s_min="[0, inf)", s_max="[0, inf]")
def churn_down(
    gamma: float | Float[Array, ""] = 0.2, s_min: float = 0.05, s_max: float = 50.0
) -> Down:
    """`down = sigma' / (1 + gamma)` where that is in [s_min, s_max], else sigma' itself."""

    def down(sigma, sigma_next):
        below = sigma_next / (1.0 + gamma)
        return jnp.where((s_min <= below) & (below <= s_max), below, sigma_next)

    return down


@within(gamma="[0, inf)", s_min="[0, inf)", s_max="[0, inf]")
def churned(
    levels: Levels,
    gamma: float | Float[Array, ""] = 0.2,
    s_min: float = 0.05,
    s_max: float = 50.0,
) -> Levels:
    """The levels that EDM evaluates the denoiser at when its own are `levels`.

    `churn_down` undoes it, but for a level at most gamma above `s_max`, which it takes for a raised
    one.

    >>> churned(jnp.array([64.0, 1.0, 0.03125]), gamma=0.5).tolist()
    [64.0, 1.5, 0.03125]
    """
    return jnp.where((s_min <= levels) & (levels <= s_max), levels * (1.0 + gamma), levels)
