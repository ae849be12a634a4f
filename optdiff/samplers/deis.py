"""DEIS: integrate a polynomial through past eps exactly, in a time of one's choosing."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.lms import lms
from optdiff.samplers.multistep import History, gauss, order_of_step, polynomial_weights
from optdiff.types import Sampler, Sigma, within

# Over the logarithm of a step, what is analytic in it to rounding.
_NODES, _WEIGHTS = gauss(32)

Time = Callable[[Sigma], Array]
"""A smooth, monotone function of the level."""


@within(beta_d="(0, inf)", beta_min="[0, inf)")
def vp_time(beta_d: float = 19.9, beta_min: float = 0.1) -> Time:
    """The time of the variance-preserving process whose beta grows linearly,
    `sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1` (arXiv 2206.00364, table 1), from sigma.

    >>> vp_time()(jnp.array(0.0)).item()
    0.0
    """

    def time(sigma):
        # In the stable form of (sqrt(beta_min^2 + 2 beta_d y) - beta_min) / beta_d.
        y = jnp.log1p(jnp.square(sigma))
        return 2.0 * y / (jnp.sqrt(beta_min**2 + 2.0 * beta_d * y) + beta_min)

    return time


_VP_TIME = vp_time()


def deis(
    order: int = 3,
    time: Time = _VP_TIME,
    final_order: int | None = None,
    lower_below: int | None = None,
) -> Sampler:
    """DEIS with Adams-Bashforth in time, tAB (arXiv 2204.13902, eq. 15):

    `x' = x + sum_j w_j eps_j,   w_j = integral from sigma to sigma' of l_j(time(s)) ds`

    with `l_j` the Lagrange basis on the times of the last `order` gradients; lower orders while
    the history fills. With `time` the level itself it is `deis_rho`, with its logarithm
    `deis_log_rho`. The integral is by 32 points of Gauss-Legendre in `log s`.

    One evaluation per step; linear. Of the stated order once the history is full; the first steps,
    of lower order, leave an error of second order in all.

    Args:
      order: 1 (DDIM) to 4; the paper has up to 4 and calls it r + 1.
      time: what the polynomial is one of; for a trained model its schedule's `t`.
      final_order: at most this on the last step, one more on the step before, and so on. None does
        not lower.
      lower_below: lower the order at the end only in runs of fewer levels; None: in all.

    Raises:
      ValueError: for another order.

    >>> sampler = deis(order=3)
    """
    if order not in range(1, 5):
        raise ValueError(f"order is 1 to 4, not {order}")
    at_order = order_of_step(order, final_order, lower_below)

    def init(x):
        return History.empty(x, order - 1)

    def update(eps, state, x=None, *, sigma, sigma_next, steps_left, **unused):
        past, now = state.and_now(eps, sigma), time(sigma)
        nodes = [time(level) - now for level in past.sigmas]
        moments = _moments(time, order, jnp.asarray(sigma), sigma_next)
        weights = polynomial_weights(nodes, moments, at_order(past.count, steps_left))
        return weighted_sum(*zip(weights, past.fields, strict=True)), past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


def deis_rho(order: int = 3) -> Sampler:
    """DEIS with Adams-Bashforth in rho, rhoAB (arXiv 2204.13902, section 3.4): rho is sigma here,
    so this is the method of `lms`, under which see the equation.

    Args and errors: as `lms`.

    >>> sampler = deis_rho(order=2)
    """
    return lms(order)


def deis_log_rho(
    order: int = 3, final_order: int | None = None, lower_below: int | None = None
) -> Sampler:
    """DEIS with Adams-Bashforth in log rho, what diffusers calls DEIS: `deis` with `time = log`.

    diffusers takes its last step to its lowest level (`finish=identity`), at the end of short runs
    with `final_order=1, lower_below=16`. One order less than a last denoising would be, that is
    `final_order=2, lower_below=15`.

    Args and errors: as `deis`.

    >>> sampler = deis_log_rho(order=2)
    """
    return deis(order, jnp.log, final_order, lower_below)


def _moments(time: Time, count: int, sigma: Array, sigma_next: Array) -> list[Array]:
    """Integrals of `(time(s) - time(sigma))^k ds` from sigma to sigma_next, k below count."""
    sigma, sigma_next = jnp.broadcast_arrays(sigma, sigma_next)
    step = jnp.log(sigma_next / sigma)
    column = (-1,) + (1,) * step.ndim
    level = sigma[None] * jnp.exp(_NODES.reshape(column) * step[None])
    measure = _WEIGHTS.reshape(column) * step[None] * level
    passed = time(level) - time(sigma)[None]
    return [jnp.sum(measure * passed**k, axis=0) for k in range(count)]
