"""Adam with a second moment per sample: fairly (`adam_per_sample`), and as it was published for
diffusion (`adaptive_momentum`).

Elementwise Adam needs no file: `from_transformation(optax.scale_by_adam())`. It replaces every
coordinate of eps by about its sign, so it forgets both the direction and how much noise there is.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import scale_by_sigma_step, weighted_sum
from optdiff.samplers.renoise import ancestral_down, gap, split, standard_normal
from optdiff.types import Sampler, Samples, expand, within


class ScaleByAdamPerSampleState(NamedTuple):
    """First moment (b, ...) and second moment (b,) of eps; `count` steps taken."""

    count: Int[Array, "b"]
    m: Samples
    v: Float[Array, "b"]


@within(b1="(-1, 1)", b2="[0, 1)")
def scale_by_adam_per_sample(
    b1: float | Float[Array, ""] | Float[Array, "b"] = 0.0,
    b2: float | Float[Array, ""] | Float[Array, "b"] = 0.5,
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
    b1: float | Float[Array, ""] | Float[Array, "b"] = 0.0,
    b2: float | Float[Array, ""] | Float[Array, "b"] = 0.5,
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


class ScaleByRadamState(NamedTuple):
    """The moments of eps, averaged from zero; `count` steps taken."""

    count: Int[Array, "b"]
    m: Samples
    v: Samples


@within(b1="[0, 1)", b2="[0, 1)", epsilon="[0, inf)")
def scale_by_radam(
    b1: float | Float[Array, ""] = 0.9,
    b2: float | Float[Array, ""] | Float[Array, "b"] = 0.999,
    epsilon: float = 1e-8,
    threshold: float = 5.0,
) -> Sampler:
    """Link: rectified Adam (arXiv 1908.03265, algorithm 2), elementwise, as `optax.scale_by_radam`.

    Optax's own has no gradient: in steps that do not use it, its factor is the root of a negative
    number. There the direction is the bias-corrected average alone, so it begins as momentum.

    Args:
      b1: memory of the direction.
      b2: memory of its square, whose length `2 / (1 - b2) - 1` bounds the number of squares known.
      epsilon: added to the root of the square.
      threshold: how many squares must be known before they are used.

    >>> scaled = scale_by_radam(b2=0.9)
    """
    known_at_last = 2.0 / (1.0 - b2) - 1.0

    def init(x):
        return ScaleByRadamState(
            jnp.zeros(x.shape[0], jnp.int32), jnp.zeros_like(x), jnp.zeros_like(x)
        )

    def update(gradient, state, x=None, **unused):
        count = state.count + 1
        m = weighted_sum((jnp.asarray(1.0 - b1), gradient), (jnp.asarray(b1), state.m))
        v = weighted_sum((jnp.asarray(1.0 - b2), gradient**2), (jnp.asarray(b2), state.v))
        known = known_at_last - 2.0 * count * b2**count / (1.0 - b2**count)
        enough = known >= threshold
        share = jnp.where(enough, known, known_at_last)
        factor = jnp.sqrt(_rectifier(share) / _rectifier(known_at_last)) / (1.0 - b1**count)
        root = jnp.sqrt(v / expand(1.0 - b2**count, v)) + epsilon
        direction = jnp.where(
            expand(enough, m),
            weighted_sum((factor, m / root)),
            weighted_sum((1.0 / (1.0 - b1**count), m)),
        )
        return direction.astype(m.dtype), ScaleByRadamState(count, m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def _rectifier(known):
    return (known - 4.0) * (known - 2.0) / known


class AdaptiveMomentumState(NamedTuple):
    """First moment (b, ...) of the moves, second moment (b,) of their length."""

    m: Samples
    v: Float[Array, "b"]


@within(a="[0, 1)", b2="[0, 1]", eta="[0, inf)")
def adaptive_momentum(
    a: float | Float[Array, ""] | Float[Array, "b"] = 0.1,
    b2: float | Float[Array, ""] | Float[Array, "b"] = 0.9,
    eta: float | Float[Array, ""] = 0.0,
) -> Sampler:
    """The adaptive momentum sampler: Adam on the moves of DDIM or DDPM, noise and all
    (arXiv 2308.11941, after its authors' code). With the ancestral move

        d_n = -(sigma - down) eps_n + sqrt(sigma'^2 - down^2) z_n
        m_n = a m_{n-1} + sqrt(1 - a^2) d_n,    m_{-1} = 0
        v_n = b2 v_{n-1} + (1 - b2) s_n,        v_{-1} = 1
        x'  = x + m_n / sqrt(v_n)

    where `s_n` is the mean square of `d_n` beside that of the same move through unit noise,
    `(sigma - down)^2 + sigma'^2 - down^2`: 1 where there is nothing but noise. (The paper's v is of
    the move itself, whose units are x's; the code first normalizes the move over channels.)

    The weights of m keep the size of independent noise, not of a steady gradient, which goes
    `g = sqrt((1 + a) / (1 - a))` times as far; and v takes the gradient's length away and never
    gives it back. The level is not kept, and it does not converge to the target: as steps shrink,
    `x' = x - g (sigma - sigma') eps / rms(eps)` at `eta = 0`. In few steps `v` still remembers its
    1 and the shorter first steps make up for g. One evaluation per step; not linear. What keeps the
    idea and converges is `adam_per_sample`.

    Args:
      a: momentum, in [0, 1).
      b2: memory of the mean square, in [0, 1]; at 1 there is no adaptation.
      eta: 0 moves as DDIM, 1 as DDPM.

    >>> sampler = adaptive_momentum(a=0.1, b2=0.9)
    """
    down = ancestral_down(eta)

    def init(x):
        return AdaptiveMomentumState(jnp.zeros_like(x), jnp.ones(x.shape[0]))

    def update(eps, state, x, *, sigma, sigma_next, key, **unused):
        below = down(sigma, sigma_next)
        noise = gap(sigma_next, below)
        _, noise_key = split(key)  # as `renoise`, so that without memory the two are one
        d = weighted_sum((below - sigma, eps), (noise, standard_normal(noise_key, x)))
        m = weighted_sum((jnp.asarray(a), state.m), (jnp.sqrt(1.0 - jnp.asarray(a) ** 2), d))
        unit = (sigma - below) ** 2 + noise**2
        moves = unit > 0
        s = jnp.where(moves, _mean_square(d) / jnp.where(moves, unit, 1.0), 1.0)
        v = (b2 * state.v + (1.0 - b2) * s).astype(state.v.dtype)
        length = 1.0 / jnp.sqrt(jnp.maximum(v, jnp.finfo(v.dtype).tiny))
        return weighted_sum((length, m)), AdaptiveMomentumState(m, v)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean_square(field: Samples) -> Float[Array, "b"]:
    wide = field.astype(jnp.promote_types(field.dtype, jnp.float32))
    return jnp.mean(wide**2, axis=tuple(range(1, field.ndim)))
