"""Gaussian data: the problem on which everything about a sampler can be written down."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.noise import variance_exploding
from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, expand, within


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "basis", "variances"],
    meta_fields=["schedule"],
)
@dataclass(frozen=True)
class Gaussian:
    """`N(mean, basis diag(variances) basis^T)`, its covariance kept by its eigenvectors."""

    mean: Float[Array, "d"]
    basis: Float[Array, "d d"]
    variances: Float[Array, "d"]
    schedule: NoiseSchedule

    instruments = ("mean", "cov")  # what metrics may ask for, see `analysis.measuring`

    @property
    def cov(self) -> Float[Array, "d d"]:
        """The covariance of the data."""
        return _matmul(self.basis * self.variances[None], self.basis.T)

    def condition(self, keys: Keys) -> Cond:
        return None

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """`D = mean + C (C + sigma^2 I)^{-1} (x - mean)`, linear shrinkage along eigenvectors."""
        variance = jnp.square(expand(sigma, x))
        return self._along(x, lambda lam: lam / (lam + variance))

    def solution(self, x: Samples, sigma: Sigma, sigma_next: Sigma, cond: Cond = None) -> Samples:
        """The exact probability-flow solution from sigma to sigma_next (which may be 0):
        along an eigenvector of variance lam, `sqrt((lam + sigma'^2) / (lam + sigma^2))`.

        arXiv 2206.00364, eq. 1 with a Gaussian score, integrated.
        """
        before, after = jnp.square(expand(sigma, x)), jnp.square(expand(sigma_next, x))
        return self._along(x, lambda lam: jnp.sqrt((lam + after) / (lam + before)))

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """The exact marginal `N(mean, C + sigma^2 I)`."""
        z = jax.vmap(lambda key: jax.random.normal(key, self.mean.shape, self.mean.dtype))(keys)
        spread = jnp.sqrt(self.variances[None] + jnp.square(expand(sigma, z)))
        return self.mean[None] + _matmul(z * spread, self.basis.T)

    def target(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.prior(keys, jnp.zeros(()))

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.target(keys)

    def decode(self, x0: Samples) -> Samples:
        return x0

    def _along(self, x, factor):
        coordinates = _matmul(x - self.mean[None], self.basis)
        moved = _matmul(coordinates * factor(self.variances[None]), self.basis.T)
        return (self.mean[None] + moved).astype(x.dtype)


@within(dim="[1, inf)", power="(-inf, inf)")
def gaussian(
    dim: int = 32,
    *,
    mean: Float[Array | np.ndarray, "d"] | list[float] | None = None,
    cov: Float[Array | np.ndarray, "d d"] | list[list[float]] | None = None,
    power: float = 2.0,
    seed: int = 0,
    schedule: NoiseSchedule | None = None,
) -> Gaussian:
    """Gaussian data with any covariance; by default a power law in a random basis, as images have.

    Args:
      dim: number of coordinates, where mean and cov do not say.
      mean: (d,), by default a random vector of unit-variance entries.
      cov: (d, d) symmetric, positive semi-definite; by default eigenvalues `k^-power`.
      power: decay of the default spectrum.
      seed: draws the default mean and basis.
      schedule: noise levels, by default 0.002 to 80.

    Raises:
      ValueError: if cov is not a covariance, or its shape and the mean's disagree.

    >>> gaussian(dim=3).cov.shape
    (3, 3)
    """
    rng = np.random.default_rng(seed)
    if cov is None:
        dim = dim if mean is None else len(mean)
        basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
        variances = np.arange(1, dim + 1.0) ** -power
    else:
        variances, basis = _spectrum(np.asarray(cov, np.float64))
    mean = rng.normal(size=len(variances)) if mean is None else np.asarray(mean, np.float64)
    if mean.shape != variances.shape:
        raise ValueError(f"mean has {mean.size} entries, but cov has {len(variances)} rows")
    arrays = (jnp.asarray(a, float) for a in (mean, basis, variances))
    return Gaussian(*arrays, schedule or variance_exploding())


def _spectrum(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a covariance, which is checked to be one."""
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise ValueError(f"cov must be a square matrix, but has shape {cov.shape}")
    if not np.isfinite(cov).all():
        raise ValueError("cov must be finite")
    if not np.allclose(cov, cov.T):
        raise ValueError("cov must be symmetric")
    variances, basis = np.linalg.eigh(cov)
    if variances[0] < -1e-6 * variances[-1]:  # what float32 does to a singular one passes
        raise ValueError(f"cov has the negative eigenvalue {variances[0]:.3g}")
    return np.maximum(variances, 0.0), basis


_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
