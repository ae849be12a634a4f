"""What becomes of optax's optimizers as steps shrink, against what theory says of each yaml.

On `N(0, I)` the gradient is `eps = sigma x / (1 + sigma^2)`. Its coordinates do not meet, nor do
directions turn, so an elementwise optimizer is one scalar equation a coordinate and one that takes
norms is one a sample. Once memories are short beside the path its update is that of a resting
gradient, and the equation can be solved. Where a yaml's own memory is long (Adam's is 1,000 steps),
it is shortened here.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yamls
from scipy.integrate import quad
from scipy.stats import norm

from optdiff.problems import gaussian
from optdiff.problems.gaussian import Gaussian
from optdiff.sample import identity, sample, sample_keys, sample_scan
from optdiff.samplers import from_transformation, gradient_estimation

SIGMA0, SIGMA1, STEPS = 4.0, 1.0, 2_000
PATH = SIGMA0 - SIGMA1


@pytest.fixture(scope="module")
def start():
    """Draws at the first level, (3, 64), from well within the data to three deviations out."""
    return np.sqrt(1 + SIGMA0**2) * jax.random.normal(jax.random.key(0), (3, 64))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "basis", "variances"],
    meta_fields=["schedule"],
)
@dataclass(frozen=True)
class Pictures(Gaussian):
    """A Gaussian whose samples have a shape."""

    def denoise(self, x, sigma, cond=None):
        return super().denoise(x.reshape(len(x), -1), sigma).reshape(x.shape)


def end(sampler, start, steps=STEPS):
    levels, keys = jnp.linspace(SIGMA0, SIGMA1, steps + 1), sample_keys(0, len(start))
    d = start[0].size
    flat = gaussian(mean=jnp.zeros(d), cov=jnp.eye(d))
    problem = Pictures(flat.mean, flat.basis, flat.variances, flat.schedule)
    x, _ = sample_scan(problem, sampler, levels, keys, x=start, finish=identity)
    return np.asarray(x)


def sign(x):
    """Every coordinate moves by the step until it is at zero."""
    return np.sign(x) * np.maximum(np.abs(x) - PATH, 0.0)


def sign_with_decay(x, decay=0.2):
    """`dx = -(sign(x) + decay x) dt`, solved."""
    left = (np.abs(x) + 1 / decay) * np.exp(-decay * PATH) - 1 / decay
    return np.sign(x) * np.maximum(left, 0.0)


def sign_outrun(x):
    """The step grows with the way w behind: `dw = max(w, 1) dt`."""
    return np.sign(x) * np.maximum(np.abs(x) - np.exp(PATH - 1), 0.0)


def over_the_largest(x, steps=20_000):
    """`dx = -eps / max |eps so far| dt`, by Euler's method."""
    largest = np.zeros_like(x)
    for sigma in np.linspace(SIGMA0, SIGMA1, steps, endpoint=False):
        eps = sigma * x / (1 + sigma**2)
        largest = np.maximum(largest, np.abs(eps))
        x = x - PATH / steps * eps / largest
    return x


def over_all_squares(x):
    """`n` steps of `eps / sqrt(sum of squares)` cannot leave the start, only approach it as
    `1 / sqrt(n)`: each coordinate by `P int g / sqrt(int g^2)`, whatever its size."""

    def g(t):
        sigma = SIGMA0 - PATH * t
        return sigma / (1 + sigma**2)

    way, _ = quad(lambda t: g(t) / np.sqrt(quad(lambda u: g(u) ** 2, 0, t)[0]), 0, 1)
    return x - np.sign(x) * PATH * way / np.sqrt(STEPS)


def length(x, gain=1.0):
    """Each sample goes the way of unit noise, `gain` times, until it is at zero."""
    rms = np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    return x * np.maximum(rms - gain * PATH, 0.0) / rms


def mean(x):
    """All the way to the mean of the data."""
    return np.zeros_like(x)


def with_x(x):
    """Each step takes `1 - sigma'/sigma` of x with it."""
    return x * SIGMA1 / SIGMA0


SHORT = {"optimizer__b1": 0.5, "optimizer__b2": 0.9}
PREDICTED = {
    "sign_sgd": (sign, {}),
    "lion": (sign, {}),
    "adam": (sign, {"transformation__b1": 0.5, "transformation__b2": 0.9}),
    "nadam": (sign, SHORT),
    "radam": (sign, {"transformation__b1": 0.5, "transformation__b2": 0.9}),
    "yogi": (sign, {"optimizer__b1": 0.5, "optimizer__b2": 0.99}),
    "rmsprop": (sign, {}),
    "adan": (sign, SHORT | {"optimizer__b3": 0.9}),
    "ademamix": (sign, SHORT | {"optimizer__b3": 0.9}),
    "adopt": (sign, SHORT),
    "optimistic_adam": (sign, SHORT),
    "muon": (sign, {"optimizer__adam_b2": 0.9}),  # on vectors
    "adamw": (sign_with_decay, SHORT | {"optimizer__weight_decay": 0.2}),
    "amsgrad": (over_the_largest, SHORT),
    "adagrad": (over_all_squares, {}),
    "sm3": (over_all_squares, {}),
    "normalize": (length, {}),
    "novograd": (length, {}),
    "adaptive_momentum": (partial(length, gain=np.sqrt(1.1 / 0.9)), {}),
    "trust_ratio": (with_x, {}),
    "prodigy": (sign_outrun, {"optimizer__optimizer__betas": [0.5, 0.5]}),
    "adabelief": (mean, {}),
    "dog": (mean, {}),
    "dowg": (mean, {}),
    "schedule_free": (mean, {}),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_misses_by_what_theory_predicts(name, start):
    theory, shortened = PREDICTED[name]
    x, predicted = end(yamls.sampler(name, **shortened), start), theory(np.asarray(start))
    target = np.asarray(start) * np.sqrt((1 + SIGMA1**2) / (1 + SIGMA0**2))
    assert _rms(predicted - target) > 0.2, "which is not the target"
    assert _rms(x - predicted) < 0.04 * _rms(predicted - target)


def test_noise_that_is_left_by_signs_alone():
    """The 0.39 of the yamls: `E max(|z| - 1, 0)^2`, of noise far above the data's scale."""
    square = 2 * quad(lambda z: (z - 1) ** 2 * norm.pdf(z), 1, np.inf)[0]
    assert np.sqrt(square) == pytest.approx(0.39, abs=0.005)


def test_noise_that_is_left_by_unit_singular_values():
    """The 0.30 of Muon's: the same over singular values of square noise, a quarter circle."""
    square, _ = quad(lambda s: (s - 1) ** 2 * np.sqrt(4 - s**2) / np.pi, 1, 2)
    assert np.sqrt(square) == pytest.approx(0.30, abs=0.005)


@pytest.fixture(scope="module")
def pictures():
    """Pure noise of the first level in two channels, (2, 6, 9, 2)."""
    return np.sqrt(1 + SIGMA0**2) * jax.random.normal(jax.random.key(1), (2, 6, 9, 2))


def test_muon_takes_the_step_off_every_singular_value(pictures):
    """With coefficients that orthogonalize exactly; Muon's own leave values of 0.7 to 1.2."""
    exact = {"optimizer__ns_coeffs": [2.0, -1.5, 0.5], "optimizer__ns_steps": 24}
    x = end(yamls.sampler("muon", optimizer__beta=0.5, **exact), pictures)
    channels = np.moveaxis(np.asarray(pictures), -1, 1)
    u, s, vt = np.linalg.svd(channels, full_matrices=False)
    left = np.maximum(s - np.sqrt(9) * PATH, 0.0)  # of unit mean square: the longer side's root
    predicted = np.moveaxis(u * left[..., None, :] @ vt, 1, -1)
    assert 0 < np.mean(left > 0) < 1, "some are used up and some are not"
    assert _rms(x - predicted) < 0.04 * _rms(predicted)


def test_sm3_bounds_squares_by_the_least_of_rows_and_columns(pictures):
    """Where adagrad has a sum for each pixel, here only the largest of its row, column or channel
    counts: pixels go less far, each in its own measure; adagrad's go nearly alike."""
    start = np.asarray(pictures)
    ours, theirs = (
        np.abs(start - end(yamls.sampler(name), pictures)) for name in ("sm3", "adagrad")
    )
    assert (ours < theirs * 1.01).all()
    assert np.std(ours) > 2 * np.std(theirs)


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_a_learning_rate_is_a_power_of_the_spread(gain, start):
    """`dx = gain eps dsigma` takes the spread to the power of the gain: only 1 keeps it."""
    x = end(yamls.sampler("optimizer", optimizer__learning_rate=gain), start)
    spread = (1 + SIGMA1**2) / (1 + SIGMA0**2)
    np.testing.assert_allclose(x, start * spread ** (gain / 2), rtol=2e-3)


def few(sampler, n=6):
    """The iterates on a few levels of a Gaussian of many variances."""
    problem = gaussian(dim=8)
    levels, keys = jnp.geomspace(80.0, 0.05, n), sample_keys(0, 4)
    x = problem.prior(keys, levels[0])
    _, trace = sample(problem, sampler, levels, keys, x=x, observe=lambda step: step.x_next)
    return trace.observed


def test_radam_begins_as_momentum():
    """Its second moment is not trusted for five steps; before, it is a debiased average."""
    average = from_transformation(optax.ema(0.9, debias=True))
    radam, plain = few(yamls.sampler("radam"), 8), few(average, 8)
    np.testing.assert_allclose(radam[:5], plain[:5], rtol=1e-10)
    assert not np.allclose(radam[5], plain[5])


@pytest.mark.parametrize("b2", [0.6, 0.9, 0.999])
def test_radam_is_optaxs(b2):
    ours, theirs = yamls.sampler("radam", transformation__b2=b2), optax.scale_by_radam(b2=b2)
    np.testing.assert_allclose(few(ours, 12), few(from_transformation(theirs), 12), rtol=1e-6)


def test_adopt_begins_with_a_rest():
    first, second = few(yamls.sampler("adopt"), 3)
    start = gaussian(dim=8).prior(sample_keys(0, 4), jnp.array(80.0))
    np.testing.assert_allclose(first, start, rtol=1e-12)
    assert not np.allclose(first, second)


def test_optimistic_gradient_is_gradient_estimation():
    yaml, ours = few(yamls.sampler("optimistic_gradient")), few(gradient_estimation(2.0))
    np.testing.assert_allclose(yaml, ours, rtol=1e-10, atol=1e-10)


CONVERGE = {
    "optimistic_gradient": yamls.sampler("optimistic_gradient"),
    "radam that never trusts": yamls.sampler("radam", transformation__b2=0.6),
    "debiased average": from_transformation(optax.ema(0.5, debias=True)),
    "sgd": yamls.sampler("optimizer"),
    "nothing": yamls.sampler("transformation"),
}


@pytest.mark.parametrize("name", CONVERGE)
def test_these_converge_to_the_target(name, start):
    """At first order, on `gaussian`."""
    target = np.asarray(start) * np.sqrt((1 + SIGMA1**2) / (1 + SIGMA0**2))
    coarse, fine = (_rms(end(CONVERGE[name], start, steps) - target) for steps in (200, 400))
    assert np.log2(coarse / fine) == pytest.approx(1.0, abs=0.1)
    assert fine < 0.02


def _rms(x):
    return np.sqrt(np.mean(x**2))
