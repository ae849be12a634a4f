"""ER-SDE solvers: the reverse equation with any amount of noise, solved by Taylor's expansion."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.multistep import History, gauss
from optdiff.samplers.renoise import gap, split, standard_normal
from optdiff.types import Sampler, data_prediction, within

NoiseScale = Callable[[Array], Array]
"""phi(sigma): how the solution forgets, `phi(sigma')/phi(sigma)` from one level to another."""

_NODES, _WEIGHTS = gauss(24)


@within(eta="[0, inf)")
def power_scale(eta: float = 1.0) -> NoiseScale:
    """`phi = sigma^(1 + eta)`: 0 is the ODE, 1 the data's own diffusion (arXiv
    2309.06169, table 1).

    >>> power_scale(1.0)(jnp.array(3.0)).item()
    9.0
    """
    return lambda sigma: sigma ** (1.0 + eta)


def er_sde_5(sigma: Float[Array, "..."]) -> Array:
    """The scale that the paper recommends, `phi = sigma (e^{sigma^0.3} + 10)` (arXiv 2309.06169,
    ER-SDE-5): noise mostly at high levels.

    >>> er_sde_5(jnp.array(0.0)).item()
    0.0
    """
    return sigma * (jnp.exp(sigma**0.3) + 10.0)


@within(s_noise="[0, inf)")
def er_sde(
    order: int = 3,
    noise_scale: NoiseScale = er_sde_5,
    s_noise: float | Float[Array, ""] = 1.0,
) -> Sampler:
    """ER-SDE-Solver for variance-exploding noise (arXiv 2309.06169, eqs. 15 to 17):

    `x' = r x + (1 - r) D + c_1 D' + c_2 D'' + sqrt(sigma'^2 - r^2 sigma^2) z`

    `r = phi(sigma')/phi(sigma)`
    `c_1 = sigma' - sigma + phi(sigma') int_{sigma'}^{sigma} ds / phi(s)`
    `c_2 = (sigma' - sigma)^2 / 2 + phi(sigma') int_{sigma'}^{sigma} (s - sigma) ds / phi(s)`

    with D' the difference of the last two data predictions over that of their levels, and D'' twice
    the second divided difference. Lower orders serve while the history fills. The authors sum 100
    rectangles for the integrals; here they are exact to rounding. As D' is the slope half a step
    back, order 3 is of second order with a smaller constant. In distribution, and without noise
    along trajectories; one evaluation per step; affine.

    Args:
      order: 1 to 3.
      noise_scale: phi, such that `phi / sigma` grows with sigma; `er_sde_5` or `power_scale(eta)`.
      s_noise: multiplies the noise.

    Raises:
      ValueError: for another order.

    >>> sampler = er_sde(order=3)
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is 1 to 3, not {order}")

    def init(x):
        return History.empty(x, 2)

    def update(eps, state, x, *, sigma, sigma_next, key, **unused):
        past = state.and_now(data_prediction(x, eps, sigma), sigma)
        r = noise_scale(sigma_next) / noise_scale(sigma)
        c_1, c_2 = _integrals(noise_scale, sigma, sigma_next)
        now, before, earlier = past.sigmas
        # Over no distance a difference says nothing, nor do those that are made of it.
        known = jnp.minimum(past.count, order)
        slope = _over(c_1, now - before, known > 1)
        bend = _over(2 * c_2, now - earlier, (known > 2) & (now != before))
        late, early = _over(bend, now - before, known > 2), _over(bend, before - earlier, known > 2)
        weights = (1 - r + slope + late, -slope - late - early, early)
        _, noise_key = split(key)
        noise = s_noise * gap(sigma_next, r * sigma), standard_normal(noise_key, x)
        dx = weighted_sum((r - 1, x), *zip(weights, past.fields, strict=True), noise)
        return dx, past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


def _over(value, distance, counts):
    """`value / distance` where it counts and there is a distance, else zero."""
    counts = counts & (distance != 0)
    return jnp.where(counts, value / jnp.where(counts, distance, 1.0), 0.0)


def _integrals(phi, sigma, sigma_next):
    """`c_1` and `c_2`, by Gauss' points in log sigma."""
    axes = (1,) * jnp.ndim(sigma_next - sigma)
    nodes, weights = _NODES.reshape(-1, *axes), _WEIGHTS.reshape(-1, *axes)
    start, stop = jnp.asarray(sigma)[None], jnp.asarray(sigma_next)[None]
    length = jnp.log(start / stop)
    s = stop * jnp.exp(length * nodes)
    kernel = weights * length * s * (phi(stop) / phi(s))
    first, second = jnp.sum(kernel, axis=0), jnp.sum(kernel * (s - start), axis=0)
    step = sigma_next - sigma
    return step + first, step**2 / 2 + second
