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
from optdiff.samplers.directions import scale_by_sigma_step, weighted_sum
from optdiff.samplers.multistep import scale_by_gradient_estimation
from optdiff.types import Keys, Sampler, Samples, Sigma, within

Down = Callable[[Sigma, Sigma], Array]
"""`down(sigma, sigma_next)`: the level to step to, at most sigma_next, before adding noise."""


@within(s_noise="[0, inf)")
def renoise(inner: Sampler, down: Down, s_noise: float | Float[Array, ""] = 1.0) -> Sampler:
    """Step with `inner` to `down(sigma, sigma')`, then add `s_noise sqrt(sigma'^2 - down^2) z`.

    Ancestral sampling, DDPM, EDM's churn, Restart and consistency sampling are this rule with
    different `down` (k-diffusion; arXiv 2006.11239; 2206.00364, algorithm 2; 2306.14878, eq. 2;
    2303.01469, algorithm 1). Around the exact flow it leaves exact marginals, whatever `down` and
    however few the steps; around a sampler of some order it has that order in distribution, where
    `down` comes to sigma' as steps shrink. Evaluations as `inner`; affine if `inner` is.

    Args:
      inner: any sampler; it is told `down` as its next level.
      down: the level to reach before the noise.
      s_noise: multiplies the noise; 1 keeps the level that the denoiser is told true, EDM's
        `S_noise` is a little more.

    >>> consistency = renoise(ddim(), lambda sigma, sigma_next: jnp.zeros_like(sigma_next))
    """

    def update(eps, state, x, *, sigma, sigma_next, key, **extra):
        below = down(sigma, sigma_next)
        inner_key, noise_key = split(key)
        dx, state = inner.update(
            eps, state, x, sigma=sigma, sigma_next=below, key=inner_key, **extra
        )
        z = standard_normal(noise_key, x)
        return weighted_sum((jnp.ones(()), dx), (s_noise * gap(sigma_next, below), z)), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def standard_normal(key: Keys, x: Samples) -> Float[Array, "b ..."]:
    """Noise of the shape of `x`, from one key per sample; always in float32."""
    # The same noise whatever the samples' type; in bfloat16 there would be 128 values of it, none
    # beyond 2.9.
    z = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], jnp.float32))(key)
    # Fused into a step, jax 0.12 rounds its last bit otherwise: one key, one noise, in any program.
    return jax.lax.optimization_barrier(z)


def gap(upper: Sigma, lower: Sigma) -> Array:
    """The noise between two levels, `sqrt(upper^2 - lower^2)`, zero if there is none."""
    square = upper**2 - lower**2
    # The root would make 1e-8 (in float32 5e-4) of what is only rounding. And twice `where`: its
    # infinite slope at zero must not reach the levels' gradient.
    some = square > 16 * jnp.finfo(jnp.result_type(square)).eps * upper**2
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


@within(eta="[0, inf)")
def ancestral_down(eta: float | Float[Array, ""] = 1.0) -> Down:
    """Keep `eta` times the noise of the true posterior `p(x' | x, x0)`, whose variance is
    `sigma'^2 (1 - sigma'^2 / sigma^2)`: `down^2 = sigma'^2 - eta^2` times it."""

    def down(sigma, sigma_next):
        # Written as a sum of what remains, which cannot cancel below zero.
        return sigma_next * jnp.sqrt((1.0 - eta**2) + (eta * sigma_next / sigma) ** 2)

    return down


@within(eta="[0, inf)")
def power_down(eta: float | Float[Array, ""] = 1.0) -> Down:
    """`down = sigma' (sigma'/sigma)^eta`: the noise of the reverse-time equation whose diffusion is
    `eta` times the data's own (in log SNR the exact solution forgets at the rate `1 + eta`).

    At 1 it is `ancestral_down(1)`; in between the two keep different noise."""

    def down(sigma, sigma_next):
        return sigma_next * (sigma_next / sigma) ** eta

    return down


@within(mu="[0, 1)")
def mu_down(mu: float | Float[Array, ""] = 0.5) -> Down:
    """The `down` for which `sigma' = sigma^mu down^(1 - mu)` (arXiv 2306.04848, eq. 10): 0 adds no
    noise, 1/2 is DDPM. It is `power_down(mu / (1 - mu))`; mu in [0, 1)."""
    return power_down(mu / (1.0 - mu))


def ancestral(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """Ancestral sampling (DDIM with noise, arXiv 2010.02502, eq. 16; k-diffusion's Euler
    ancestral): DDIM to `down = sigma'^2 / sigma`, then noise back up to sigma' (at `eta = 1`).

    Converges to the target in distribution, not along trajectories. One evaluation per step.

    Args:
      eta: 0 is DDIM, 1 the posterior's own noise (DDPM in sigma-coordinates).

    >>> sampler = ancestral(eta=1.0)
    """
    return renoise(ddim(), ancestral_down(eta))


def euler_ancestral(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """k-diffusion's Euler ancestral, which is `ancestral`. By this name it steps where diffusers'
    does.

    >>> sampler = euler_ancestral(eta=1.0)
    """
    return ancestral(eta)


def ddpm(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """DDPM (arXiv 2006.11239), which is `ancestral`. By this name it steps where diffusers' does.

    >>> sampler = ddpm()
    """
    return ancestral(eta)


def gamma_mu(gamma: float | Float[Array, ""] = 2.0, mu: float | Float[Array, ""] = 0.0) -> Sampler:
    """The general sampler of arXiv 2306.04848 (algorithm 2 with noise, section 4): gradient
    estimation to the level `down`, then noise back up to `sigma' = sigma^mu down^(1 - mu)`.

    `x' = x - (sigma - down) (gamma eps_n + (1 - gamma) eps_{n-1}) + sqrt(sigma'^2 - down^2) z`

    DDIM is (1, 0), DDPM (1, 1/2), gradient estimation (2, 0). First order; one evaluation per step.

    Args:
      gamma: 1 uses the gradient as it is, 2 extrapolates a whole step.
      mu: in [0, 1), how much noise is taken off and put back.

    >>> ddpm = gamma_mu(gamma=1.0, mu=0.5)
    """
    inner = optax.chain(scale_by_gradient_estimation(gamma), scale_by_sigma_step())
    return renoise(inner, mu_down(mu))


@jax.jit  # keys that several processes share out are taken apart in a program alone
def split(key: Keys) -> tuple[Keys, Keys]:
    """Two keys of each."""
    one, other = jax.vmap(jax.random.split, out_axes=1)(key)
    return one, other
