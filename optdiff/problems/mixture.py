"""Mixtures of isotropic Gaussians: exact scores of any difficulty, and modes that can be missed."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.noise import variance_exploding
from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, within


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["means", "stds", "log_weights"],
    meta_fields=["schedule"],
)
@dataclass(frozen=True)
class Mixture:
    """`sum_k w_k N(means_k, stds_k^2 I)`."""

    means: Float[Array, "k d"]
    stds: Float[Array, "k"]
    log_weights: Float[Array, "k"]
    schedule: NoiseSchedule

    instruments = ("means", "weights", "stds")  # what metrics may ask for

    @property
    def weights(self) -> Float[Array, "k"]:
        """The weights of the modes, which sum to 1."""
        return jnp.exp(self.log_weights)

    def condition(self, keys: Keys) -> Cond:
        return None

    def log_density(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Float[Array, "b"]:
        """`log p_sigma(x)` of the data with noise of level sigma, (b,)."""
        joint, _ = self._joint(x, sigma)
        return jax.nn.logsumexp(joint, axis=1)

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """`D = sum_k r_k(x) (m_k + s_k^2 / (s_k^2 + sigma^2) (x - m_k))`, with `r_k(x)` the
        responsibilities of the modes at this noise level."""
        joint, variances = self._joint(x, sigma)
        responsibilities = jax.nn.softmax(joint, axis=1)
        keep = jnp.square(self.stds)[None] / variances  # (b, k) share of x in the posterior mean
        towards = _matmul(responsibilities * (1.0 - keep), self.means)
        return (towards + jnp.sum(responsibilities * keep, 1, keepdims=True) * x).astype(x.dtype)

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """The exact marginal: the mixture with every mode widened by sigma."""

        def one(key, sigma):
            mode_key, noise_key = jax.random.split(key)
            mode = jax.random.categorical(mode_key, self.log_weights)
            z = jax.random.normal(noise_key, self.means.shape[1:], self.means.dtype)
            return self.means[mode] + jnp.hypot(self.stds[mode], sigma) * z

        return jax.vmap(one)(keys, jnp.broadcast_to(sigma, keys.shape))

    def target(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.prior(keys, jnp.zeros(()))

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        return self.target(keys)

    def decode(self, x0: Samples) -> Samples:
        return x0

    def _joint(self, x, sigma) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """`log w_k N(x; m_k, s_k^2 + sigma^2)` and these variances, (b, k) each."""
        sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
        variances = jnp.square(self.stds)[None] + jnp.square(sigma)
        # Squared distances about the centre of the means: nothing large cancels there.
        centre = jnp.mean(self.means, axis=0, keepdims=True)
        x, means = x - centre, self.means - centre
        distances = (
            jnp.sum(x**2, 1)[:, None] - 2.0 * _matmul(x, means.T) + jnp.sum(means**2, 1)[None]
        )
        d = self.means.shape[1]
        normalizer = 0.5 * d * jnp.log(2.0 * jnp.pi * variances)
        return self.log_weights[None] - 0.5 * distances / variances - normalizer, variances


@within(modes="[1, inf)", dim="[1, inf)", stds="(0, inf)", weights="(0, inf)")
def mixture(
    modes: int = 12,
    dim: int = 16,
    *,
    means: Float[Array | np.ndarray, "k d"] | list[list[float]] | None = None,
    stds: Float[Array | np.ndarray, "k"] | list[float] | float = 0.1,
    weights: Float[Array | np.ndarray, "k"] | list[float] | None = None,
    seed: int = 0,
    schedule: NoiseSchedule | None = None,
) -> Mixture:
    """A mixture with any number of modes and dimensions.

    Args:
      modes, dim: the size, where means does not say.
      means: (k, d), by default random with unit-variance entries.
      stds: standard deviation of each mode, or one for all.
      weights: (k,) positive, normalized here; by default from 1 to 3, so that modes differ.
      seed: draws the default means.
      schedule: noise levels, by default 0.002 to 80.

    Raises:
      ValueError: for weights or stds that are not positive, or of another length than means.

    >>> mixture(modes=3, dim=2).means.shape
    (3, 2)
    """
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(modes, dim)) if means is None else np.asarray(means, np.float64)
    stds = np.asarray(stds, np.float64)
    stds = np.full(len(means), stds) if stds.ndim == 0 else stds
    weights = np.linspace(1, 3, len(means)) if weights is None else np.asarray(weights, np.float64)
    for name, values in (("stds", stds), ("weights", weights)):
        if values.shape != means.shape[:1]:
            raise ValueError(f"there are {len(means)} modes but {values.size} {name}")
    arrays = (jnp.asarray(a, float) for a in (means, stds, np.log(weights / weights.sum())))
    return Mixture(*arrays, schedule or variance_exploding())


_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
