"""What every metric promises: invariances, types, and no figure for broken samples."""

import doctest
import importlib
import pkgutil
from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import optdiff.metrics
from optdiff.metrics import (
    attribute_accuracy,
    clip_score,
    energy_distance,
    frechet,
    gelbrich,
    memorization,
    mmd,
    mode_weights,
    on_features,
    prdc,
    sliced_w2,
    trajectory_error,
)

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(80, 2, 3))
REFERENCE = RNG.normal(size=(95, 2, 3)) + 0.3

TWO_SETS = [sliced_w2, mmd, energy_distance, frechet, prdc]
CALLS = {metric.__name__: partial(metric, reference=REFERENCE) for metric in TWO_SETS} | {
    "trajectory_error": partial(trajectory_error, exact=REFERENCE[:80]),
    "gelbrich": partial(gelbrich, mean=np.zeros(6), cov=np.eye(6)),
    "mode_weights": partial(
        mode_weights, means=REFERENCE[:4], weights=np.full(4, 0.25), stds=np.ones(4)
    ),
}


def judge(images):
    """Logits of as many answers as an image has rows or columns: its means over the others."""
    images = np.asarray(images, np.float64)
    return SimpleNamespace(digit=images.mean(1), ink=images.mean(1), paper=images.mean(2))


ASKED = {"digit": np.arange(80) % 3, "ink": np.arange(80) % 3, "paper": np.arange(80) % 2}
COND = {"attributes": ASKED, "mentions": {name: np.arange(80) % 5 > 0 for name in ASKED}}
CALLS |= {
    "attribute_accuracy": partial(attribute_accuracy, cond=COND, judge=judge),
    "clip_score": partial(
        clip_score, cond=COND, agreement=lambda images, cond: np.asarray(images, float)[:, 0, 0]
    ),
    "on_features": partial(
        on_features({"mmd": mmd, "prdc": prdc}),
        reference=REFERENCE,
        features=lambda images: np.asarray(images, np.float64).mean(1),
    ),
    "memorization": partial(
        memorization, training=REFERENCE, held_out=REFERENCE[:60] + 0.5, percentile=20.0
    ),
}


def values(result):
    return result if isinstance(result, dict) else {"value": result}


@pytest.fixture(params=CALLS)
def metric(request):
    return CALLS[request.param]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_counted_in_the_error(metric, broken):
    samples = SAMPLES.copy()
    samples[3, 1, 2] = samples[3, 0, 0] = samples[10, 0, 0] = broken
    with pytest.raises(ValueError, match=r"2 of 80 are not finite \(the first at index 3\)"):
        metric(samples)


def test_result_is_made_of_python_floats(metric):
    for value in values(metric(SAMPLES)).values():
        assert type(value) is float and np.isfinite(value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_samples_of_any_precision_count_as_the_float64_they_stand_for(metric, dtype):
    samples = jnp.asarray(SAMPLES, dtype)
    assert values(metric(samples)) == values(metric(np.asarray(samples).astype(np.float64)))


def test_inputs_are_left_as_they_were(metric):
    before = SAMPLES.copy(), REFERENCE.copy()
    metric(SAMPLES)
    np.testing.assert_array_equal(SAMPLES, before[0])
    np.testing.assert_array_equal(REFERENCE, before[1])


@pytest.mark.parametrize("metric", TWO_SETS)
def test_order_of_samples_does_not_matter(metric):
    rng = np.random.default_rng(1)
    shuffled = metric(rng.permutation(SAMPLES), rng.permutation(REFERENCE))
    assert values(shuffled) == pytest.approx(values(metric(SAMPLES, REFERENCE)), abs=1e-12)


@pytest.mark.parametrize("metric", TWO_SETS)
@pytest.mark.parametrize("shift", [1.0, 1e4])
def test_moving_everything_changes_nothing(metric, shift):
    moved = metric(SAMPLES + shift, REFERENCE + shift)
    assert values(moved) == pytest.approx(values(metric(SAMPLES, REFERENCE)), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "power"), [(sliced_w2, 1), (frechet, 1), (energy_distance, 1), (mmd, 0), (prdc, 0)]
)
def test_units_are_the_documented_ones(metric, power):
    scaled = values(metric(8 * SAMPLES, 8 * REFERENCE))
    expected = {k: 8**power * v for k, v in values(metric(SAMPLES, REFERENCE)).items()}
    assert scaled == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", TWO_SETS)
def test_sets_of_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(80, 6\) and reference \(95, 2, 3\) must agree"):
        metric(SAMPLES.reshape(80, 6), REFERENCE)


@pytest.mark.parametrize("metric", TWO_SETS)
def test_a_broken_reference_is_called_by_its_name(metric):
    reference = REFERENCE.copy()
    reference[0] = np.nan
    with pytest.raises(ValueError, match="reference: 1 of 95 are not finite"):
        metric(SAMPLES, reference)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(optdiff.metrics.__path__)])
def test_examples_run(name):
    outcome = doctest.testmod(importlib.import_module(f"optdiff.metrics.{name}"))
    assert outcome.attempted > 0 and outcome.failed == 0
