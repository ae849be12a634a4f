"""Adam twice: elementwise, which must miss by what theory predicts, and per sample, which must not.

Elementwise Adam replaces a gradient by about its sign. On data in one point all coordinates then
travel alike, however far they have to go: as steps shrink and memories become short beside the
path, `|x|` falls from `sigma0 |z|` to `max(sigma0 (|z| - 1), 0)`. Its root mean square is
`sigma0 sqrt(2 [2 Phi(-1) - phi(1)]) = 0.388 sigma0`, where a sampler that converges leaves zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from optdiff.problems import gaussian
from optdiff.sample import identity, sample, sample_keys, sample_scan
from optdiff.samplers import (
    adam_per_sample,
    ddim,
    from_transformation,
    scale_by_adam_per_sample,
    scale_by_heavy_ball,
    whole_batch,
)

POINT = gaussian(mean=jnp.zeros(256), cov=jnp.zeros((256, 256)))
SIGMA0 = 80.0
MISSED = np.sqrt(2 * (2 * norm.cdf(-1) - norm.pdf(1)))


def elementwise(b1, b2):
    return from_transformation(optax.scale_by_adam(b1=b1, b2=b2), wrap=whole_batch)


@pytest.fixture(scope="module")
def start():
    """Pure noise, (64, 256)."""
    return SIGMA0 * jax.random.normal(jax.random.key(0), (64, 256))


def end(sampler, start, steps, mode=sample_scan):
    levels = jnp.linspace(SIGMA0, SIGMA0 / steps, steps)
    x, _ = mode(POINT, sampler, levels, sample_keys(0, len(start)), x=start, finish=identity)
    return np.asarray(x), SIGMA0 - SIGMA0 / steps


def test_theory_of_the_miss_against_quadrature():
    z = np.linspace(1.0, 12.0, 200_001)
    square = 2 * np.trapezoid((z - 1) ** 2 * norm.pdf(z), z)
    assert pytest.approx(np.sqrt(square), rel=1e-8) == MISSED


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.9, 0.999)])
def test_first_step_is_the_sign(betas, start):
    """Up to Adam's own epsilon, 1e-8."""
    x, travelled = end(elementwise(*betas), start, 2, mode=sample)
    eps = start / SIGMA0
    sign = eps / (jnp.abs(eps) + 1e-8)
    np.testing.assert_allclose(x, start - travelled * sign, rtol=0, atol=1e-9)


def test_without_memory_every_coordinate_misses_as_predicted(start):
    """Those beyond the path's length exactly, the others by no more than a step."""
    steps = 200
    x, travelled = end(elementwise(0.0, 0.0), start, steps)
    far = np.abs(start) > SIGMA0
    np.testing.assert_allclose(np.abs(x)[far], (np.abs(start) - travelled)[far], atol=1e-4)
    assert (np.abs(x)[~far] < 2 * SIGMA0 / steps).all()
    _require_miss(x, discretization=0.005)


def test_with_memory_the_same_in_the_limit(start):
    """What counts is how long the memory is beside the path: 10 steps of 4,000 come close, and of
    1,000 steps, as in the yaml, the longer path forgets more."""
    few = start[:2]
    ideal = np.sqrt(np.mean(np.maximum(np.abs(few) / SIGMA0 - 1, 0) ** 2))

    def gap(b2, steps):
        x, _ = end(elementwise(0.9, b2), few, steps)
        return abs(np.sqrt(np.mean((x / SIGMA0) ** 2)) - ideal)

    assert gap(0.9, 4_000) < 0.01
    assert gap(0.999, 16_000) < 0.6 * gap(0.999, 4_000)


def _require_miss(x, discretization):
    """The root mean square of what is left, within 4 of its own standard deviations."""
    left = np.mean((x / SIGMA0) ** 2)
    fourth = np.mean((x / SIGMA0) ** 4)
    sampling = 4 * np.sqrt((fourth - left**2) / x.size) / (2 * np.sqrt(left))
    assert np.sqrt(left) == pytest.approx(MISSED, abs=sampling + discretization)


def test_adam_per_sample_and_ddim_do_not_miss(start):
    for sampler in (ddim(), adam_per_sample(0.5, 0.5)):
        x, _ = end(sampler, start, 200, mode=sample)
        assert np.sqrt(np.mean((x / SIGMA0) ** 2)) < 0.01


def scale(sampler, problem, levels, x):
    """How long each step was, as a multiple of `(sigma - sigma') |eps|`, (n - 1, b)."""

    def observe(step):
        moved = jnp.linalg.norm(step.x_next - step.x, axis=1)
        return moved / ((step.sigma - step.sigma_next) * jnp.linalg.norm(step.eps, axis=1))

    _, trace = sample(problem, sampler, levels, sample_keys(0, len(x)), x=x, observe=observe)
    return np.asarray(trace.observed)


def test_length_of_steps_is_the_square_root_of_s_over_v():
    """The equation of the docstring, from the gradients that the run itself met; with momentum in
    the direction or without, for the length is given back."""
    problem, levels = gaussian(dim=8), jnp.geomspace(80.0, 0.05, 12)
    x = problem.prior(sample_keys(0, 4), levels[0])
    for b1 in (0.0, 0.6):
        sampler, squares = adam_per_sample(b1, 0.7), []
        sample(
            problem,
            sampler,
            levels,
            sample_keys(0, 4),
            x=x,
            on_step=lambda step, squares=squares: squares.append(np.mean(step.eps**2, axis=1)),
        )
        v, factors = np.ones(4), []
        for s in squares:
            v = 0.7 * v + 0.3 * s
            factors.append(np.sqrt(s / v))
        np.testing.assert_allclose(scale(sampler, problem, levels, x), factors, rtol=1e-10)


@pytest.fixture(scope="module")
def isotropic():
    """`N(0, I)`, and starts whose eps has mean square 1 at level 1000."""
    problem = gaussian(mean=jnp.zeros(16), cov=jnp.eye(16))
    z = jax.random.normal(jax.random.key(1), (4, 16))
    return problem, 1e3 * z / jnp.sqrt(jnp.mean(z**2, axis=1, keepdims=True))


def test_adam_per_sample_is_ddim_far_above_the_datas_scale(isotropic):
    problem, x = isotropic
    levels = jnp.geomspace(1e3, 1e2, 9)
    np.testing.assert_allclose(scale(adam_per_sample(), problem, levels, x), 1.0, atol=1e-4)


def test_adam_per_sample_shortens_steps_below_the_datas_scale(isotropic):
    """There s falls with sigma^2, and v, which remembers, stays above: on a geometric grid of
    ratio r, `s / v` comes to rest at `(1 - b2 / r^2) / (1 - b2)`."""
    problem, x = isotropic
    ratio, b2 = 0.9, 0.5
    levels = 1e3 * ratio ** jnp.arange(130)
    factor = scale(adam_per_sample(b2=b2), problem, levels, x)
    assert (factor[levels[:-1] < 0.1] < 1).all()
    np.testing.assert_allclose(factor[-1] ** 2, (1 - b2 / ratio**2) / (1 - b2), rtol=1e-4)


def test_adam_per_sample_falls_short_where_ddim_overshoots(isotropic):
    problem, x = isotropic
    levels, keys = jnp.geomspace(1e3, 1e-2, 41), sample_keys(0, 4)
    exact = jnp.linalg.norm(problem.solution(x, levels[0], levels[-1]), axis=1)
    ddims, ours = (
        jnp.linalg.norm(sample(problem, s, levels, keys, x=x, finish=identity)[0], axis=1)
        for s in (ddim(), adam_per_sample())
    )
    assert (ddims < exact).all()
    assert (ddims < ours).all()


def test_momentum_of_adam_per_sample_keeps_the_gradients_length():
    """Without memory of squares it is heavy ball's direction at the length of eps."""
    keys = jax.random.split(jax.random.key(2), 5)
    ball, ours = scale_by_heavy_ball(0.6), scale_by_adam_per_sample(0.6, 0.0)
    x = jnp.zeros((3, 7))
    ball_state, our_state = ball.init(x), ours.init(x)
    for key in keys:
        eps = jax.random.normal(key, x.shape)
        v, ball_state = ball.update(eps, ball_state)
        u, our_state = ours.update(eps, our_state)
        lengths = jnp.linalg.norm(eps, axis=1, keepdims=True)
        expected = v * lengths / jnp.linalg.norm(v, axis=1, keepdims=True)
        np.testing.assert_allclose(u, expected, rtol=1e-12)
