"""Denoisers from networks: preconditioning (EDM, table 1) and classifier-free guidance.

A network sees `c_in x` and `c_noise` and answers `F`; its denoiser is `D = c_skip x + c_out F`.
Variance-preserving and flow models enter and leave sigma-coordinates here and nowhere else. Each
scaling is a function of sigma; the schedule supplies the network's own time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, expand


class Scaling(NamedTuple):
    """The four coefficients of EDM (arXiv 2206.00364, eq. 7) at one noise level."""

    c_skip: Float[Array, "..."]
    c_out: Float[Array, "..."]
    c_in: Float[Array, "..."]
    c_noise: Float[Array, "..."]


ScalingFn = Callable[[NoiseSchedule, Sigma], Scaling]


def eps_scaling(schedule: NoiseSchedule, sigma: Sigma) -> Scaling:
    """The network predicts the noise: `D = x - sigma F(x / sqrt(1 + sigma^2), t)`."""
    return Scaling(jnp.ones_like(sigma), -sigma, _vp(sigma), schedule.t(sigma))


def x0_scaling(schedule: NoiseSchedule, sigma: Sigma) -> Scaling:
    """The network predicts the data: `D = F(x / sqrt(1 + sigma^2), t)`."""
    return Scaling(jnp.zeros_like(sigma), jnp.ones_like(sigma), _vp(sigma), schedule.t(sigma))


def v_scaling(schedule: NoiseSchedule, sigma: Sigma) -> Scaling:
    """The network predicts `v = alpha n - s x0` (arXiv 2202.00512, appendix D), with
    `alpha = 1 / sqrt(1 + sigma^2)` and `s = sigma alpha`: `D = alpha^2 x - s F(alpha x, t)`."""
    return Scaling(_vp(sigma) ** 2, -sigma * _vp(sigma), _vp(sigma), schedule.t(sigma))


def flow_scaling(schedule: NoiseSchedule, sigma: Sigma) -> Scaling:
    """The network predicts the velocity `n - x0` of `z = (1 - t) x0 + t n`, where
    `t = sigma / (1 + sigma)` and `z = (1 - t) x`: `D = z - t F(z, t)`."""
    c_in = 1.0 / (1.0 + sigma)
    return Scaling(c_in, -sigma * c_in, c_in, schedule.t(sigma))


def edm_scaling(schedule: NoiseSchedule, sigma: Sigma, *, sigma_data: float = 0.5) -> Scaling:
    """EDM's own preconditioning (arXiv 2206.00364, table 1): unit-variance input and target.

    Args:
      sigma_data: standard deviation of the data; `c_noise = log(sigma) / 4`.
    """
    variance = sigma**2 + sigma_data**2
    return Scaling(
        sigma_data**2 / variance,
        sigma * sigma_data * variance**-0.5,
        variance**-0.5,
        jnp.log(sigma) / 4.0,
    )


@cache
def without_time_conditioning(scaling: ScalingFn) -> ScalingFn:
    """The same scaling for a network that is not told the noise level: its `c_noise` is 0.

    An optimizer needs no clock, says the lecture; arXiv 2502.13129 finds that a denoiser hardly
    needs one either.
    """

    def blind(schedule: NoiseSchedule, sigma: Sigma) -> Scaling:
        c = scaling(schedule, sigma)
        return c._replace(c_noise=jnp.zeros_like(c.c_noise))

    return blind


def precondition(
    network: Callable[[Samples, Float[Array, "..."], Cond], Samples],
    scaling: ScalingFn,
    schedule: NoiseSchedule,
) -> Callable[[Samples, Sigma, Cond], Samples]:
    """The denoiser `D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)` of a network F.

    Args:
      network: `F(z, c_noise, cond)`, with `c_noise` () or (b,) like sigma.
      scaling: one of this module's scalings.
      schedule: the network's trained levels; supplies its time.

    >>> from optdiff.noise import variance_exploding
    >>> silent = lambda z, t, cond: jnp.zeros_like(z)   # predicts no noise at all
    >>> D = precondition(silent, eps_scaling, variance_exploding())
    >>> D(jnp.ones((1, 2)), jnp.array(3.0), None).tolist()
    [[1.0, 1.0]]
    """

    def denoise(x, sigma, cond):
        coefficients = scaling(schedule, sigma)
        c = Scaling(*(expand(c, x) for c in coefficients))
        out = network(c.c_in * x, coefficients.c_noise, cond)
        return (c.c_skip * x + c.c_out * out).astype(x.dtype)

    return denoise


@partial(
    jax.tree_util.register_dataclass, data_fields=["problem", "scale", "uncond"], meta_fields=[]
)
@dataclass(frozen=True)
class Guided:
    """A problem under classifier-free guidance (arXiv 2207.12598, eq. 6 with `w = scale - 1`):
    `D_w = D(x, uncond) + scale (D(x, cond) - D(x, uncond))`.

    One evaluation runs the network on both halves of a doubled batch, hence two passes. `scale` is
    a leaf: sweeping it does not recompile.

    Attributes:
      problem: the conditional problem.
      scale: 1 is plain conditional sampling; above it, away from the unconditional.
      uncond: one sample's unconditional (or negative) condition, broadcast over the batch.
    """

    problem: Any
    scale: Float[Array, ""] | float
    uncond: Cond

    passes = 2

    def __post_init__(self):
        if isinstance(self.scale, int | float) and not math.isfinite(self.scale):
            raise ValueError(f"guidance is a finite number, not {self.scale}")

    @property
    def schedule(self) -> NoiseSchedule:
        return self.problem.schedule

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond) -> Samples:
        if cond is None:
            raise ValueError("guidance needs a condition per sample, but cond is None")
        uncond = jax.tree.map(lambda u, c: jnp.broadcast_to(u, c.shape), self.uncond, cond)
        both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
        twice = jnp.concatenate([sigma, sigma]) if jnp.ndim(sigma) else sigma
        denoised = self.problem.denoise(jnp.concatenate([x, x]), twice, both)
        unguided, conditional = jnp.split(denoised, 2)
        return (unguided + self.scale * (conditional - unguided)).astype(x.dtype)

    def condition(self, keys: Keys) -> Cond:
        return self.problem.condition(keys)

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        return self.problem.prior(keys, sigma, cond)

    def decode(self, x0: Samples) -> Samples:
        return self.problem.decode(x0)

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.problem.reference(keys, cond)


def _vp(sigma: Sigma) -> Sigma:
    """`alpha = 1 / sqrt(1 + sigma^2)`, which maps sigma-coordinates to variance-preserving ones."""
    return jax.lax.rsqrt(1.0 + sigma**2)
