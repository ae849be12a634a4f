"""The lecture's opening: if we can say how probable a picture is, the gradient draws one.

Any differentiable log-probability is a denoiser (Tweedie's formula, Efron 2011):
`D(x, sigma) = x + sigma^2 grad log p_sigma(x)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, expand

LogDensity = Callable[[Any, Samples, Sigma, Cond], Float[Array, "b"]]
"""`log_density(problem, x, sigma, cond)`: log p_sigma of each sample, up to a constant."""


@partial(jax.tree_util.register_dataclass, data_fields=["problem"], meta_fields=["log_density"])
@dataclass(frozen=True)
class Energy:
    """A problem whose denoiser is one automatic derivative of a log-probability."""

    problem: Any
    log_density: LogDensity

    @property
    def schedule(self) -> NoiseSchedule:
        return self.problem.schedule

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """`D = x + sigma^2 grad log p_sigma(x)`."""
        # Samples do not interact, so the gradient of the sum holds every sample's own.
        grad = jax.grad(lambda x: self.log_density(self.problem, x, sigma, cond).sum())(x)
        return (x + expand(sigma, x) ** 2 * grad).astype(x.dtype)

    def condition(self, keys: Keys) -> Cond:
        return self.problem.condition(keys)

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        return self.problem.prior(keys, sigma, cond)

    def target(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.problem.target(keys, cond)

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.problem.reference(keys, cond)

    def decode(self, x0: Samples) -> Samples:
        return self.problem.decode(x0)


def own_log_density(problem: Any, x: Samples, sigma: Sigma, cond: Cond) -> Float[Array, "b"]:
    """The log-density that the problem itself offers."""
    return problem.log_density(x, sigma, cond)


def energy(problem: Any, log_density: LogDensity = own_log_density) -> Energy:
    """Replace a problem's denoiser by the gradient of a log-probability.

    Args:
      problem: where sampling starts, what good samples look like, and the parameters of p.
      log_density: `(problem, x, sigma, cond) -> (b,)`, log p_sigma up to a constant; by default
        the problem's own. A density that ignores sigma is allowed: then `D` is a plain gradient
        step of length sigma^2, not a posterior mean.

    >>> import jax.numpy as jnp
    >>> from optdiff.problems.mixture import mixture
    >>> exact, by_gradient = mixture(), energy(mixture())
    >>> x, sigma = jnp.ones((1, 16)), jnp.array(0.5)
    >>> bool(jnp.allclose(exact.denoise(x, sigma), by_gradient.denoise(x, sigma), atol=1e-5))
    True
    """
    return Energy(problem, log_density)
