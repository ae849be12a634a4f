"""The optimization view of a trajectory: what each step's gradient says to somebody who optimizes.

`observe` goes to the driver, in either mode; `diagnose` turns what it kept into one number per step
and sample. Drawing them is `report`'s business.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.sample import Step


class Observed(NamedTuple):
    """Of each step: the level, () or (b,), and the gradient of the first samples, (b, ...)."""

    sigma: Float[Array, "..."]
    eps: Float[Array, "..."]


class Diagnostics(NamedTuple):
    """One number per step and sample; `sigma` is (n,), or (n, b) where samples have their own."""

    sigma: Float[np.ndarray, "n ..."]
    gradient_norm: Float[np.ndarray, "n b"]
    cosine: Float[np.ndarray, "n b"]
    distance: Float[np.ndarray, "n b"]


def observe(step: Step, *, samples: int = 64) -> Observed:
    """Keep what `diagnose` needs. Pass it to the driver as `observe=`.

    A cosine needs two gradients, and the driver shows one at a time, so gradients are kept whole,
    but only those of the first samples: memory is steps times `samples`, whatever the batch.

    Args:
      step: what the driver shows.
      samples: how many to watch; fix another number with `functools.partial`.
    """
    return Observed(
        step.sigma[:samples] if jnp.ndim(step.sigma) else step.sigma, step.eps[:samples]
    )


def diagnose(observed: Observed) -> Diagnostics:
    """Gradient norm, cosine of successive gradients and distance to the data, for each step.

    With g the gradient `eps` of a sample with d coordinates (arXiv 2306.04848, sections 3 and 4):

    - `gradient_norm = |g| / sqrt(d)`: 1 where the noise is what its level says, less below the
      data's own scale, more where a sampler left noise behind;
    - `cosine = <g, g_prev> / (|g| |g_prev|)`: 1 on a straight path, NaN on the first step;
    - `distance = sigma |g| / sqrt(d) = |x - D| / sqrt(d)`: the denoiser's estimate of how far the
      data are, per coordinate. Descent keeps it at sigma, as the theory of DDIM says.

    Args:
      observed: `trace.observed` of a run with `observe`, stacked over n steps.

    Returns:
      Arrays on the host, in float64, (n, b) with b the samples watched; empty for no steps.

    >>> from optdiff.problems import gaussian
    >>> from optdiff.grids import karras
    >>> from optdiff.sample import sample, sample_keys
    >>> from optdiff.samplers import ddim
    >>> problem, keys = gaussian(dim=2), sample_keys(0, 4)
    >>> _, trace = sample(problem, ddim(), karras(problem.schedule, 8), keys, observe=observe)
    >>> diagnose(trace.observed).distance.shape
    (7, 4)
    """
    eps = np.asarray(observed.eps).astype(np.float64)
    g = eps.reshape(*eps.shape[:2], np.prod(eps.shape[2:], dtype=int))  # -1 fails on no steps
    sigma = np.asarray(observed.sigma).astype(np.float64)
    norm = np.linalg.norm(g, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.sum(g[1:] * g[:-1], axis=2) / (norm[1:] * norm[:-1])
    cosine = np.concatenate([np.full_like(norm[:1], np.nan), cosine])
    rms = norm / np.sqrt(g.shape[2])
    level = sigma[:, None] if sigma.ndim == 1 else sigma
    return Diagnostics(sigma, rms, cosine, level * rms)
