"""Stochastic samplers: step below the target level, then add the noise back.

Injecting noise moves the level that the integrator must aim for, so `renoise` wraps an integrator
instead of following it as a link (which would cost Heun its order).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.samplers.ddim import ddim
from optdiff.samplers.directions import weighted_sum
from optdiff.types import Sampler, Sigma

Down = Callable[[Sigma, Sigma], Array]
"""`down(sigma, sigma_next)`: the level to step to, at most sigma_next, before adding noise."""


def renoise(inner: Sampler, down: Down) -> Sampler:
    """Step with `inner` to `down(sigma, sigma')`, then add `sqrt(sigma'^2 - down^2) z`.

    Ancestral sampling, DDPM, EDM's churn and consistency sampling are this rule with different
    `down` (k-diffusion; arXiv 2006.11239; 2206.00364, algorithm 2; 2303.01469, algorithm 1).

    Args:
      inner: any sampler; it is told `down` as its next level.
      down: the level to reach before the noise.

    >>> consistency = renoise(ddim(), lambda sigma, sigma_next: jnp.zeros_like(sigma_next))
    """

    def update(eps, state, x, *, sigma, sigma_next, key, **extra):
        below = down(sigma, sigma_next)
        inner_key, noise_key = _split(key)
        dx, state = inner.update(
            eps, state, x, sigma=sigma, sigma_next=below, key=inner_key, **extra
        )
        # In float32 whatever the samples' type: the same noise, and in bfloat16 there would be 128
        # values of it, none beyond 2.9.
        z = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], jnp.float32))(noise_key)
        gap = sigma_next**2 - below**2
        # Twice `where`: the root's infinite slope at zero must not reach the levels' gradient.
        spread = jnp.where(gap > 0, jnp.sqrt(jnp.where(gap > 0, gap, 1.0)), 0.0)
        return weighted_sum((jnp.ones(()), dx), (spread, z)), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def ancestral_down(eta: float | Float[Array, ""] = 1.0) -> Down:
    """Keep `eta` times the noise of the true posterior `p(x' | x, x0)`, whose variance is
    `sigma'^2 (1 - sigma'^2 / sigma^2)`: `down^2 = sigma'^2 - eta^2` times it."""

    def down(sigma, sigma_next):
        # Written as a sum of what remains, which cannot cancel below zero.
        return sigma_next * jnp.sqrt((1.0 - eta**2) + (eta * sigma_next / sigma) ** 2)

    return down


def ancestral(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """Ancestral sampling (DDIM with noise, arXiv 2010.02502, eq. 16; k-diffusion's Euler
    ancestral): DDIM to `down = sigma'^2 / sigma`, then noise back up to sigma' (at `eta = 1`).

    Converges to the target in distribution, not along trajectories. One evaluation per step.

    Args:
      eta: 0 is DDIM, 1 the posterior's own noise (DDPM in sigma-coordinates).

    >>> sampler = ancestral(eta=1.0)
    """
    return renoise(ddim(), ancestral_down(eta))


_split = jax.vmap(jax.random.split, out_axes=1)
