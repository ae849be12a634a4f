"""Adam per sample: what is left of Adam when it must neither turn the gradient nor lose its length.

Elementwise Adam needs no file: `from_transformation(optax.scale_by_adam())`. It replaces every
coordinate of eps by about its sign, so it forgets both the direction and how much noise there is.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import scale_by_sigma_step, weighted_sum
from optdiff.types import Sampler, Samples


class ScaleByAdamPerSampleState(NamedTuple):
    """First moment (b, ...) and second moment (b,) of eps; `count` steps taken."""

    count: Int[Array, "b"]
    m: Samples
    v: Float[Array, "b"]


def scale_by_adam_per_sample(
    b1: float | Float[Array, ""] = 0.0, b2: float | Float[Array, ""] = 0.5
) -> Sampler:
    """Link: see `adam_per_sample`."""

    def init(x):
        return ScaleByAdamPerSampleState(
            jnp.zeros(x.shape[0], jnp.int32), jnp.zeros_like(x), jnp.ones(x.shape[0])
        )

    def update(eps, state, x=None, **unused):
        b = jnp.where(state.count == 0, 0.0, b1)
        m = weighted_sum((1.0 - b, eps), (b, state.m))
        s, m_square = _mean_square(eps), _mean_square(m)
        v = (b2 * state.v + (1.0 - b2) * s).astype(state.v.dtype)
        tiny = jnp.finfo(v.dtype).tiny
        length = jnp.sqrt(s / jnp.maximum(m_square, tiny))
        direction = weighted_sum((length * jnp.sqrt(s / jnp.maximum(v, tiny)), m))
        return direction, ScaleByAdamPerSampleState(state.count + 1, m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def adam_per_sample(
    b1: float | Float[Array, ""] = 0.0, b2: float | Float[Array, ""] = 0.5
) -> Sampler:
    """Adam with one second moment per sample, for a gradient whose length means something.

    With `s_n = mean(eps_n^2)` over a sample's coordinates,

        m_n = b1 m_{n-1} + (1 - b1) eps_n,      m_0 = eps_0
        v_n = b2 v_{n-1} + (1 - b2) s_n,        v_{-1} = 1
        u_n = m_n sqrt(s_n / mean(m_n^2))       averaged direction, gradient's length
        x'  = x - (sigma - sigma') sqrt(s_n) u_n / sqrt(v_n)

    Four departures from Adam (arXiv 1412.6980), after the adaptive momentum sampler
    (arXiv 2308.11941) and momentum Langevin (2405.13726): the second moment is a scalar, so the
    direction is kept; it starts at 1, the mean square of pure noise, so no bias correction is
    needed; momentum keeps the norm, since averaging would hide noise that is still there; and
    `u / sqrt(v)`, of length one whatever the gradient, gets its length `sqrt(s)` back.

    Where it differs from DDIM with momentum (of this kind, which keeps the norm): by the factor
    `sqrt(s_n / v_n)`. It is 1 while the mean square of eps rests at 1, which is at all levels far
    above the data's scale, and there the two coincide. Where the noise falls below that scale `s`
    falls, `v` remembers its past, and the factor drops below 1: it shortens steps whose gradient is
    about to shrink, the side on which DDIM overshoots. As steps become small `v -> s`, so it
    converges to the target at first order. One evaluation per step; not linear.

    Args:
      b1: averaging of the direction, in (-1, 1).
      b2: memory of the mean square, in [0, 1); 0 leaves DDIM with norm-preserving momentum.

    >>> sampler = adam_per_sample(b2=0.5)
    """
    return optax.chain(scale_by_adam_per_sample(b1, b2), scale_by_sigma_step())


def _mean_square(field: Samples) -> Float[Array, "b"]:
    wide = field.astype(jnp.promote_types(field.dtype, jnp.float32))
    return jnp.mean(wide**2, axis=tuple(range(1, field.ndim)))
