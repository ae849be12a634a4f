"""SA-Solver: the exponential Adams methods for the process that also adds noise."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.renoise import gap, split, standard_normal
from optdiff.samplers.unipc import exponential_adams
from optdiff.types import Sampler, Sigma, within

Tau = Callable[[Sigma], Array]
"""How much noise is replaced at a level: 0 the flow, 1 the reverse diffusion, more is possible."""


@within(low="[0, inf)", high="(0, inf]", tau="[0, inf)")
def tau_between(low: float, high: float, tau: float = 1.0) -> Tau:
    """`tau` at levels from low to high, both included, and 0 at others
    (arXiv 2309.05019, appendix E).

    >>> tau_between(0.05, 1.0)(jnp.array([2.0, 1.0, 0.01])).tolist()
    [0.0, 1.0, 0.0]
    """
    return lambda sigma: jnp.where((sigma >= low) & (sigma <= high), tau, 0.0)


_NEAR_THE_DATA = tau_between(0.05, 1.0)


def sa_solver(
    predictor: int = 2,
    corrector: int = 2,
    tau: Tau = _NEAR_THE_DATA,
    final_order: int | None = None,
) -> Sampler:
    """SA-Solver (arXiv 2309.05019, algorithm 1, data prediction): `unipc` for the reverse process
    with `tau` times the noise. In sigma-coordinates, with `h = log(sigma / sigma')`,

    `x' = (sigma'/sigma) e^{-tau^2 h} x_c + sigma' sqrt(1 - e^{-2 tau^2 h}) z`
    `     + (1 + tau^2) integral from 0 to h of e^{(1 + tau^2)(s - h)} p(s) ds`

    with p the polynomial through the last `predictor` predictions of the data, and corrected as
    there, by one through `corrector` points, the step's end among them. Tau is that of the step's
    start. For polynomials through two points the integral of s is put at `h^2 / 2`. With tau = 0,
    (p, p + 1) is `unipc(p, bh1)`.

    One evaluation per step; linear in x and eps, with noise. In distribution (covariance on a
    Gaussian) it is of first order with one point and no corrector and of second with more, while
    there is noise; without, of the orders of `unipc`.

    Args:
      predictor: 1 to 4 points, fewer while the history fills.
      corrector: 1 to 4, or 0 for none.
      tau: a function of the level.
      final_order: as `unipc`.

    Raises:
      ValueError: for other numbers of points.

    >>> sampler = sa_solver(predictor=3, corrector=4)
    """
    if predictor not in range(1, 5) or corrector not in range(5):
        raise ValueError(
            "predictor has 1 to 4 points and corrector 0 to 4, "
            f"not predictor={predictor}, corrector={corrector}"
        )
    drift = exponential_adams(
        predictor, corrector, lambda h: h**2 / 2, tau=tau, final_order=final_order
    )

    def update(eps, state, x, *, sigma, sigma_next, key, **extra):
        dx, state = drift.update(eps, state, x, sigma=sigma, sigma_next=sigma_next, **extra)
        _, noise_key = split(key)  # as `renoise`, whose noise it then shares
        kept = sigma_next * (sigma_next / sigma) ** (tau(sigma) ** 2)
        noise = standard_normal(noise_key, x)
        return weighted_sum((jnp.ones(()), dx), (gap(sigma_next, kept), noise)), state

    return optax.GradientTransformationExtraArgs(drift.init, update)
