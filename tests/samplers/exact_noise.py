"""What noisy samplers draw, recorded or chosen; and so their exact mean and covariance."""

import sys
from collections.abc import Callable
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.analysis.affine import Pushed
from optdiff.grids import karras
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian
from optdiff.sample import identity, sample, sample_keys


@contextmanager
def drawing(draw: Callable):
    """Let samplers draw `draw(theirs, key, x)`, where `theirs(key, x)` is what they would have."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            theirs = getattr(module, "standard_normal", None)
            if name.startswith("optdiff.samplers.") and theirs is not None:
                ours = lambda key, x, theirs=theirs: jnp.asarray(draw(theirs, key, x))  # noqa: E731
                patch.setattr(module, "standard_normal", ours)
        yield


def recorded(run: Callable) -> list[np.ndarray]:
    """All that is drawn while this runs in host mode, in the order of drawing."""
    draws = []

    def record(theirs, key, x):
        draws.append(np.asarray(theirs(key, x)))
        return draws[-1]

    with drawing(record):
        run()
    return draws


def pushed(problem, sampler, levels) -> Pushed:
    """Where a sampler that is affine in x and in its noise takes the exact marginal at the first
    level: like `optdiff.analysis.affine.propagate`, with a probe for every number that is drawn."""
    mean = np.asarray(problem.mean)
    root = np.asarray(problem.basis * jnp.sqrt(problem.variances + levels[0] ** 2)[None])
    d = len(mean)

    def run(x):
        x = jnp.asarray(x)
        return np.asarray(
            sample(problem, sampler, levels, sample_keys(0, len(x)), x=x, finish=identity)[0]
        )

    draws = len(recorded(lambda: run(mean[None])))
    mixed = np.random.default_rng(0).normal(size=(1, d * (1 + draws)))
    probes = np.concatenate([np.zeros((1, d * (1 + draws))), np.eye(d * (1 + draws)), mixed])
    noise = iter(np.split(probes[:, d:], draws, axis=1) if draws else [])
    with drawing(lambda theirs, key, x: next(noise)):
        y = run(mean + probes[:, :d] @ root.T)
    result = Pushed(y[0], (y[1:-1] - y[0]).T)
    np.testing.assert_allclose(y[-1] - y[0], mixed[0] @ result.root.T, rtol=1e-9, atol=1e-9)
    return result


SCHEDULE = variance_exploding(0.5, 2.0)
PROBLEM = gaussian(mean=[1.0, -2.0], cov=[[2.0, 0.6], [0.6, 0.5]], schedule=SCHEDULE)


def covariance_slope(sampler_of):
    """The order at which the exact covariance at the last level becomes that of the marginal; the
    mean is the marginal's at any number of steps."""
    missed = []
    for steps in (16, 32):
        levels = karras(SCHEDULE, steps + 1)
        left = pushed(PROBLEM, sampler_of(steps), levels)
        np.testing.assert_allclose(left.mean, PROBLEM.mean, rtol=1e-12)
        missed.append(np.linalg.norm(left.cov - PROBLEM.cov - levels[-1] ** 2 * np.eye(2)))
    return np.log2(missed[0] / missed[1])
