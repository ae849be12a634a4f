"""Heun's method: look at the gradient where the Euler step would land, and use the mean of both."""

import optax

from optdiff.samplers.directions import weighted_sum
from optdiff.types import Sampler


def heun() -> Sampler:
    """EDM's deterministic sampler (arXiv 2206.00364, algorithm 1), without its branch at zero:
    the driver's last denoising is that branch.

    `x_e = x + (sigma' - sigma) eps;  x' = x + (sigma' - sigma) (eps + eps(x_e, sigma')) / 2`

    Second order; two evaluations per step; linear.

    >>> sampler = heun()
    """

    def update(eps, state, x, *, sigma, sigma_next, eps_fn, **unused):
        h = sigma_next - sigma
        x_euler = x + weighted_sum((h, eps))
        eps_euler = eps_fn(x_euler, sigma_next)
        return weighted_sum((h / 2, eps), (h / 2, eps_euler)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
