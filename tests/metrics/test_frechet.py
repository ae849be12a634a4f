"""Frechet distance against POT, its default features, and its refusals."""

from functools import partial

import numpy as np
import ot
import pytest
from sklearn.decomposition import PCA

from optdiff.metrics import frechet, principal_features


def bures(x, y):
    return ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), np.cov(x.T), np.cov(y.T))


@pytest.mark.parametrize(("b", "n"), [(200, 200), (150, 333)])
def test_few_dimensions_agree_with_pot_on_raw_coordinates(b, n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(b, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(n, 6)) + 0.5
    assert frechet(x, y) == pytest.approx(bures(x, y), rel=1e-8)


def test_principal_axes_agree_with_sklearn():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 50)) * np.linspace(1, 4, 50) for n in (90, 120))
    pca = PCA(n_components=10, svd_solver="full").fit(y)
    missed = np.linalg.norm(x - pca.inverse_transform(pca.transform(x)), axis=1)
    features = principal_features(y, count=10)(x)
    np.testing.assert_allclose(np.abs(features[:, :10]), np.abs(pca.transform(x))[:, ::-1], 1e-8)
    np.testing.assert_allclose(features[:, 10], missed, rtol=1e-9)


def test_more_dimensions_than_samples_change_nothing():
    # The same points turned into a higher dimension take the route by the other product.
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(100, 40)) * 1.2, rng.normal(size=(110, 40))
    turn, _ = np.linalg.qr(rng.normal(size=(300, 40)))
    features = partial(principal_features, count=12)
    wide = frechet(x @ turn.T, y @ turn.T, features=features)
    assert wide == pytest.approx(frechet(x, y, features=features), rel=1e-9)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dim", [30, 200])
def test_a_reference_of_few_directions_yields_as_many_axes(rank, dim):
    rng = np.random.default_rng(6)
    y = rng.normal(size=(90, rank)) @ rng.normal(size=(rank, dim)) + 1
    assert principal_features(y)(y).shape == (90, rank + 1)
    assert frechet(y + 1, y) == pytest.approx(np.sqrt(dim), rel=1e-6)


def test_what_leaves_the_span_of_the_axes_is_seen():
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(3, 30))
    x, y = (rng.normal(size=(n, 3)) @ basis for n in (200, 300))
    noise = rng.normal(size=(200, 30))
    noise -= noise @ np.linalg.pinv(basis) @ basis
    # The last feature is exactly |noise|, which is 0 on the reference.
    added = frechet(x + noise, y) ** 2 - frechet(x, y) ** 2
    size = np.linalg.norm(noise, axis=1)
    assert added == pytest.approx(size.mean() ** 2 + size.var(ddof=1), rel=0.02)


def test_features_of_ones_own_replace_the_default():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 4, 4)) + 1, rng.normal(size=(90, 4, 4))

    def columns(samples):
        return np.asarray(samples).mean(axis=1)

    value = frechet(x, y, features=lambda reference: columns)
    assert value == pytest.approx(bures(columns(x), columns(y)), rel=1e-8)


def test_too_many_features_are_refused_with_a_way_out():
    x = np.random.default_rng(4).normal(size=(200, 100))
    with pytest.raises(ValueError, match=r"65 features: at most 64 .* count=63\)"):
        frechet(x, x, features=partial(principal_features, count=64))
    frechet(x, x, features=partial(principal_features, count=63))


@pytest.mark.parametrize(("b", "n"), [(40, 500), (500, 40)])
def test_too_few_samples_are_refused_with_a_way_out(b, n):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(b, 100)), rng.normal(size=(n, 100))
    with pytest.raises(ValueError, match=r"draw at least 64 of each, .* count=19\)"):
        frechet(x, y)
    frechet(x, y, features=partial(principal_features, count=19))
