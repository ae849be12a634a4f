"""DDIM: plain gradient descent along the noise levels, the sampler all others are measured by."""

from optdiff.samplers.directions import scale_by_sigma_step
from optdiff.types import Sampler


def ddim() -> Sampler:
    """`x' = x - (sigma - sigma') eps` (arXiv 2010.02502, eq. 12 without noise).

    The same rule is Euler's method in sigma and gradient descent on half the squared smoothed
    distance with step `1 - sigma'/sigma` (arXiv 2306.04848, section 3). First order; one
    evaluation per step; linear.

    >>> sampler = ddim()
    """
    return scale_by_sigma_step()


def euler() -> Sampler:
    """k-diffusion's Euler, which is `ddim`. By this name it steps where diffusers' Euler does.

    >>> sampler = euler()
    """
    return ddim()
