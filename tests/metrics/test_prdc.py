"""Precision, recall, density, coverage against scikit-learn and the expectations of the paper."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from optdiff.metrics import prdc


def sklearn_prdc(x, y, k):
    def radii(z):
        return NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, k]

    def balls_around(points, centres):
        """For each point, which balls hold it."""
        distances, index = (
            NearestNeighbors(n_neighbors=len(centres)).fit(centres).kneighbors(points)
        )
        return distances <= radii(centres)[index]

    around_x = balls_around(x, y)
    nearest_x = NearestNeighbors(n_neighbors=1).fit(x).kneighbors(y)[0][:, 0]
    return {
        "precision": around_x.any(axis=1).mean(),
        "recall": balls_around(y, x).any(axis=1).mean(),
        "density": around_x.sum() / (k * len(x)),
        "coverage": (nearest_x <= radii(y)).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("b", "n"), [(100, 100), (60, 140)])
def test_agrees_with_sklearn_neighbours(b, n, k):
    rng = np.random.default_rng(10 * k + b)
    x, y = 1.2 * rng.normal(size=(b, 4)) + 0.4, rng.normal(size=(n, 4))
    assert prdc(x, y, neighbors=k) == pytest.approx(sklearn_prdc(x, y, k), abs=1e-12)


@pytest.mark.parametrize(("b", "n", "k"), [(60, 60, 5), (40, 90, 3)])
def test_equal_distributions_have_the_expected_density_and_coverage(b, n, k):
    # Naeem et al., section 3: whatever the distribution, E[density] = 1 and E[coverage] is the
    # chance that the k points nearest to a reference point are not all of the reference.
    rng = np.random.default_rng(k)
    rows = [prdc(rng.normal(size=(b, 3)), rng.normal(size=(n, 3)), neighbors=k) for _ in range(200)]
    steps = np.arange(1, k + 1)
    coverage = 1 - np.prod((n - steps) / (b + n - steps))
    assert np.mean([r["density"] for r in rows]) == pytest.approx(1, abs=0.02)
    assert np.mean([r["coverage"] for r in rows]) == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_on_the_sphere_lie_in_the_closed_ball(offset):
    # Each ball holds its centre and k neighbours exactly: the last of them sits on the sphere.
    y = np.random.default_rng(0).normal(size=(300, 20)) + offset
    copies = np.random.default_rng(1).permutation(y)
    values = prdc(copies, y, neighbors=4)
    assert values == {"precision": 1.0, "recall": 1.0, "density": 5 / 4, "coverage": 1.0}


def test_a_sample_that_ran_away_stays_outside():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(100, 5))
    x = rng.normal(size=(50, 5))
    x[:10] = 1e30 * rng.normal(size=(10, 5))
    assert prdc(x, y)["precision"] <= 0.8


def test_too_few_samples_for_the_neighbourhood_are_refused():
    with pytest.raises(ValueError, match="samples: 5 given, at least 6 needed"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="neighbors=0: must be 1 or more"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)), neighbors=0)
