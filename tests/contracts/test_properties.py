"""What no sampler's rule may spoil, whatever the levels: scales, places of pixels, finite numbers.

One program a sampler: levels, their number, and how the problem is moved are its data.
"""

import sys
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdiff.sample import Clock, last_denoising, sample_keys, sampling_loop
from optdiff.types import expand

MOST, PIXELS, CHANNELS = 16, 6, 2
IMAGE = (3, 2, CHANNELS)  # some optimizers know rows from columns
START = np.random.default_rng(0).normal(size=(4, *IMAGE))
TOWARDS = np.random.default_rng(1).normal(size=(1, *IMAGE))
WEIGHTS = np.random.default_rng(2).normal(size=(PIXELS * CHANNELS,) * 2) / 3
IN_PLACE = np.arange(PIXELS)

frugal = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def network(x, sigma):
    """Every pixel looks at every other; answers are around zero, of size one."""
    flat = x.reshape(len(x), -1)
    hidden = flat @ jnp.asarray(WEIGHTS, x.dtype) / (1.0 + expand(sigma, flat))
    return jnp.tanh(hidden).astype(x.dtype).reshape(x.shape)


def moved(x, order):
    """Pixels in another order, with all their channels."""
    return x.reshape(len(x), PIXELS, CHANNELS)[:, order].reshape(x.shape)


@contextmanager
def noise_moved(order):
    """Let samplers draw what they would have, with its pixels moved."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            theirs = getattr(module, "standard_normal", None)
            if name.startswith("optdiff.samplers.") and theirs is not None:
                draw = lambda key, x, theirs=theirs: moved(theirs(key, x), order)  # noqa: E731
                patch.setattr(module, "standard_normal", draw)
        yield


def compiled(sampler):
    """`run(x, levels, n, scale, shift, order)`: the last iterate and x0, on the first n levels, of
    the network for data that are scaled, shifted and moved."""

    @jax.jit
    def program(x, levels, n, scale, shift, order):
        back = jnp.argsort(order)

        def eps_fn(x, sigma):
            inner = network(moved((x - shift) / scale, back), sigma / scale)
            residual = x - (scale * moved(inner, order) + shift)
            return (residual / expand(sigma, x)).astype(x.dtype)

        def steps(step, carry, count):
            return jax.lax.fori_loop(0, count, lambda i, carry: step(carry, i)[0], carry), None

        grid = lambda levels, x, eps, i: (levels[i + 1], None, levels)  # noqa: E731
        clock = Clock(lambda x: (levels[0], levels), grid)
        keys = sample_keys(0, len(x))
        with noise_moved(order):
            arguments = (steps, eps_fn, sampler, clock, n, keys, x, last_denoising)
            x0, carry, _ = sampling_loop(*arguments)
        return carry.x, x0

    def run(x, levels, scale=1.0, shift=0.0 * TOWARDS, order=IN_PLACE):
        dtype, n = jnp.zeros(()).dtype, len(levels)
        padded = np.pad(levels, (0, MOST - n), mode="edge")
        numbers = (np.asarray(a, dtype) for a in (x, padded, scale, shift))
        x, padded, scale, shift = numbers
        return [np.asarray(a) for a in program(x, padded, n, scale, shift, np.asarray(order))]

    return run


@pytest.fixture(scope="module")
def run(sampler):
    return compiled(sampler)


@pytest.fixture(scope="module")
def name(sampler, samplers):
    return next(name for name, one in samplers.items() if one is sampler)


@st.composite
def falling(draw, ratios, tops, lowest=0.0):
    """Levels, at most as many as the program has room for, whose successive ratios and whose first
    are within these bounds, evenly in the logarithm of what a step takes from log SNR."""
    n = draw(st.integers(1, MOST))
    steps = draw(st.lists(st.floats(*np.log(np.log(ratios))), min_size=n - 1, max_size=n - 1))
    top = np.exp(draw(st.floats(*np.log(tops))))
    levels = top * np.exp(-np.cumsum([0.0, *np.exp(steps)]))
    return levels[levels > min(lowest, 0.9 * top)]


usual = falling((1.1, 2.0), (1.0, 100.0))


def apart(ours, theirs):
    """How far the iterates, and x0, are apart, as a share of their length."""
    gaps = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True))
    return max(gaps)


ITS_OWN_SCALE = {
    "adamw": "decays x towards zero",
    "trust_ratio": "takes the length of x",
    "dog": "begins with a step of so many times 1 + |x|",
    "dowg": "begins with a distance in units of the data",
    "prodigy": "begins with a distance in units of the data",
    "deis": "its time is that of one schedule",
    "tcd": "steps in the trained times of one schedule",
    "momentum_by_level": "its momentum is a function of the level",
    "er_sde": "its noise is no power of the level",
    "sa_solver": "adds noise between two given levels",
    "edm_churn": "raises the levels between two given ones",
}
"""Why sampling `a x + b` is not `a` times sampling `x`, plus `b`: none of ours without need."""


@frugal
@given(levels=usual, log_scale=st.floats(-2.0, 2.0), by=st.floats(-5.0, 5.0))
def test_scaled_and_shifted_data_give_scaled_and_shifted_samples(run, name, levels, log_scale, by):
    if name in ITS_OWN_SCALE:
        levels, log_scale, by = np.geomspace(60.0, 0.03, 8), 1.0, 1.0
    scale, shift, x = np.exp(log_scale), by * TOWARDS, levels[0] * START
    there = run(scale * x + shift, scale * levels, scale, shift)
    here = [scale * a + shift for a in run(x, levels)]
    if name in ITS_OWN_SCALE:
        assert apart(there, here) > 1e-4, "it has no scale: take it from the list"
    else:
        assert apart(there, here) < 1e-9


ROWS_AND_COLUMNS = {
    "muon": "makes the rows and columns of an image orthogonal",
    "sm3": "keeps one sum for each row and each column",
}
"""Why it matters where a pixel is. Norms and mean squares do not ask."""


@frugal
@given(levels=usual, order=st.permutations(range(PIXELS)))
def test_pixels_have_no_places(run, name, levels, order):
    if name in ROWS_AND_COLUMNS:
        levels, order = np.geomspace(60.0, 0.03, 8), [1, 2, 3, 4, 5, 0]
    x = levels[0] * START
    there = run(moved(x, order), levels, order=order)
    here = [moved(a, order) for a in run(x, levels)]
    if name in ROWS_AND_COLUMNS:
        assert apart(there, here) > 1e-2, "it has no rows: take it from the list"
    else:
        assert apart(there, here) < 1e-9


any_levels = falling((1 + 1e-4, 1e3), (1e-3, 1e6), lowest=1e-6)


def check_finite(run, levels):
    assert all(np.isfinite(a).all() for a in run(levels[0] * START, levels)), levels.tolist()


@frugal
@given(levels=any_levels)
def test_any_levels_that_fall_give_finite_samples(run, levels):
    check_finite(run, levels)


@pytest.fixture(scope="module")
def run_as_in_production(sampler_in_float32):
    """In float32, the sampler's own tables too."""
    with jax.enable_x64(False):
        run = compiled(sampler_in_float32)

    def in_float32(x, levels):
        with jax.enable_x64(False):
            return run(x, levels)

    return in_float32


@pytest.mark.slow
@frugal
@given(levels=any_levels)
def test_and_so_they_do_in_single_precision(run_as_in_production, levels):
    check_finite(run_as_in_production, levels)


def test_no_exception_outlives_its_sampler(samplers):
    assert samplers.keys() >= ITS_OWN_SCALE.keys() | ROWS_AND_COLUMNS.keys()
