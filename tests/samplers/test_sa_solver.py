"""SA-Solver in distribution: its exact covariance on a Gaussian, and what its tau promises."""

import jax.numpy as jnp
import numpy as np
import pytest
from exact_noise import pushed

from optdiff.grids import karras
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian
from optdiff.samplers import sa_solver, tau_between

SCHEDULE = variance_exploding(0.5, 2.0)
PROBLEM = gaussian(mean=[1.0, -2.0], cov=[[2.0, 0.6], [0.6, 0.5]], schedule=SCHEDULE)


@pytest.mark.slow
# Noise between the points keeps any number of them at second order.
@pytest.mark.parametrize(
    ("points", "order"), [((1, 0), 1), ((2, 0), 2), ((1, 2), 2), ((2, 2), 2), ((3, 4), 2)], ids=str
)
def test_covariance_converges(points, order):
    """To that of the marginal at the last level; the mean is right at any number of steps."""
    sampler, missed = sa_solver(*points, jnp.ones_like), []
    for n in (17, 33):
        levels = karras(SCHEDULE, n)
        left = pushed(PROBLEM, sampler, levels)
        np.testing.assert_allclose(left.mean, PROBLEM.mean, rtol=1e-12)
        missed.append(np.linalg.norm(left.cov - PROBLEM.cov - levels[-1] ** 2 * np.eye(2)))
    assert np.log2(missed[0] / missed[1]) == pytest.approx(order, abs=0.35)


def test_tau_holds_between_its_levels_and_at_them():
    tau = tau_between(0.1, 2.0, tau=0.5)
    np.testing.assert_array_equal(
        tau(jnp.array([3.0, 2.0, 1.0, 0.1, 0.05])), [0.0, 0.5, 0.5, 0.5, 0.0]
    )


@pytest.mark.parametrize("points", [(0, 1), (5, 2), (2, 5), (2, -1)])
def test_points_it_has_not_are_refused(points):
    with pytest.raises(ValueError, match="predictor has 1 to 4 points"):
        sa_solver(*points)
