"""How noisy the examples are that a denoiser learns from: distributions of the training level.

Each is a function of the schedule, a key and a count. Where a sampler steps is a grid's business.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from optdiff.types import NoiseSchedule

NoiseLevels = Callable[[NoiseSchedule, Key[Array, ""], int], Float[Array, "b"]]
"""`levels(schedule, key, count)`: a level for each of so many examples."""


def uniform_time(schedule: NoiseSchedule, key: Key[Array, ""], count: int) -> Float[Array, "b"]:
    """`sigma(t)`, t uniform over the trained times (arXiv 2006.11239, algorithm 1).

    Stratified: one draw in each of `count` equal parts, so that a batch always spans the levels
    (arXiv 2107.00630, section I.1).

    >>> from optdiff.noise import scaled_linear
    >>> uniform_time(scaled_linear(), jax.random.key(0), 3).shape
    (3,)
    """
    first, last = (schedule.t(jnp.asarray(s)) for s in (schedule.sigma_min, schedule.sigma_max))
    return schedule.sigma(first + (last - first) * _stratified(key, count))


def uniform_logsnr(schedule: NoiseSchedule, key: Key[Array, ""], count: int) -> Float[Array, "b"]:
    """`log sigma` uniform over the trained range, stratified like `uniform_time`."""
    low, high = jnp.log(schedule.sigma_min), jnp.log(schedule.sigma_max)
    return jnp.exp(low + (high - low) * _stratified(key, count))


def log_normal(
    schedule: NoiseSchedule,
    key: Key[Array, ""],
    count: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
) -> Float[Array, "b"]:
    """`log sigma ~ N(mean, std^2)`, kept inside the trained range (arXiv 2206.00364, table 1)."""
    draw = jnp.exp(mean + std * jax.random.normal(key, (count,)))
    return jnp.clip(draw, schedule.sigma_min, schedule.sigma_max)


def _stratified(key: Key[Array, ""], count: int) -> Float[Array, "b"]:
    """One uniform draw in each of `count` equal parts of [0, 1], in random order."""
    place, order = jax.random.split(key)
    parts = jax.random.permutation(order, count)
    return (parts + jax.random.uniform(place, (count,))) / count
