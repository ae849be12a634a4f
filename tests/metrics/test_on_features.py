"""Metrics on features are the metrics of features, made once, under their own names."""

from functools import partial

import numpy as np
import pytest

from optdiff.metrics import energy_distance, frechet, gaussian_w2, mmd, on_features, prdc, unchanged
from optdiff.metrics.gaussian_w2 import moments

RNG = np.random.default_rng(0)
SAMPLES, REFERENCE = RNG.normal(size=(60, 4, 4)), RNG.normal(size=(80, 4, 4)) + 0.2
MIX = RNG.normal(size=(16, 3))


def features(images):
    return np.tanh(np.asarray(images).reshape(len(images), 16) @ MIX)


def test_it_is_the_metric_of_the_features():
    metrics = {"mmd": mmd, "prdc": prdc, "energy": energy_distance}
    found = on_features(metrics, prefix="judge_")(SAMPLES, REFERENCE, features)
    x, y = features(SAMPLES), features(REFERENCE)
    expected = {"mmd": mmd(x, y), **prdc(x, y), "energy": energy_distance(x, y)}
    assert found == {f"judge_{name}": value for name, value in expected.items()}


def test_features_are_made_once_for_all_metrics():
    calls = []
    counted = lambda images: calls.append(len(images)) or features(images)  # noqa: E731
    on_features({"mmd": mmd, "prdc": prdc})(SAMPLES, REFERENCE, counted)
    assert calls == [60, 80]


def test_frechet_of_features_as_they_are_is_the_distance_of_their_moments():
    metric = on_features({"frechet": partial(frechet, features=unchanged)})
    found = metric(SAMPLES, REFERENCE, features)["frechet"]
    exact = gaussian_w2(*moments(features(SAMPLES)), *moments(features(REFERENCE)))
    assert found == pytest.approx(exact, rel=1e-9)


def test_broken_images_are_refused_whatever_their_features():
    broken = SAMPLES.copy()
    broken[5] = np.nan
    blind = lambda images: features(np.nan_to_num(images))  # noqa: E731
    with pytest.raises(ValueError, match="1 of 60 are not finite"):
        on_features({"mmd": mmd})(broken, REFERENCE, blind)
