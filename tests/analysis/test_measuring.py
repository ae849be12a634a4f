"""What metrics are handed, what a refusal costs, and how sure a value is."""

from functools import partial

import numpy as np
import pytest

from optdiff.analysis.measuring import GROUPS, Measured, measure
from optdiff.metrics import energy_distance, frechet, mmd, prdc, sliced_w2, trajectory_error
from optdiff.problems import gaussian


def of_gaussian(n=64, seed=0):
    problem, draw = gaussian(dim=2), np.random.default_rng(seed)
    samples, reference, exact = draw.normal(size=(3, n, 2))
    return Measured(problem, samples, reference, exact=exact)


def test_what_nobody_has_is_named():
    for name, metric in {"ears": lambda ears: 0.0, "prior": lambda prior: 0.0}.items():
        message = f"asks for '{name}', which is not among the instruments of Gaussian"
        with pytest.raises(TypeError, match=message):
            measure({"listens": metric}, of_gaussian())


def test_a_refusal_costs_the_metric_that_refuses_and_no_other():
    def too_few(samples):
        raise ValueError("64 samples, at least 128 needed")

    scores = measure({"few": too_few, "error": trajectory_error}, of_gaussian())
    assert set(scores.values) == {"error"} and set(scores.refused) == {"few"}
    assert scores.refused["few"] == "64 samples, at least 128 needed (~metrics.few leaves it out)"
    with pytest.raises(ValueError, match="few: 64 samples"):
        measure({"few": too_few}, of_gaussian())


@pytest.mark.parametrize("field", ["samples", "x0"])
def test_broken_samples_are_no_refusal_but_a_failure(field):
    measured = of_gaussian()._replace(x0=np.zeros((64, 2)))
    broken = getattr(measured, field).copy()
    broken[[5, 9], 1] = np.inf
    with pytest.raises(FloatingPointError, match=r"2 of 64 samples are not finite .* index 5"):
        measure({"size": lambda samples: 1.0}, measured._replace(**{field: broken}))


@pytest.mark.parametrize("n", [64, 61, 5])
def test_the_spread_of_a_mean_is_that_of_its_groups(n):
    measured = of_gaussian(n)
    first = measured.samples[:, 0]
    spread = measure({"mean": lambda samples: float(samples[:, 0].mean())}, measured).spread["mean"]
    groups = min(GROUPS, n)
    assert len(spread) == groups
    error = np.sqrt(np.sum(np.square(spread)) / (groups * (groups - 1)))
    if n % groups == 0:  # then it is exact, else nearly so
        means = [first[g::groups].mean() - first.mean() for g in range(groups)]
        np.testing.assert_allclose(spread, means, rtol=1e-4)
    assert error == pytest.approx(first.std(ddof=1) / np.sqrt(n), rel=0.7)


METRICS = {
    "error": trajectory_error,
    "sliced_w2": partial(sliced_w2, projections=8),
    "energy": energy_distance,
    "frechet": frechet,
    "mmd": mmd,
    "prdc": prdc,
}


def test_the_spread_tells_how_metrics_of_sets_vary_from_draw_to_draw():
    """The jackknife's mean variance against the variance over independent draws."""
    draws = [of_gaussian(64, seed) for seed in range(60)]
    shifted = [one._replace(samples=1.5 * one.samples + 0.5) for one in draws]
    scores = [measure(METRICS, one) for one in shifted]
    for name in scores[0].values:
        true = np.std([one.values[name] for one in scores], ddof=1)
        squares = [np.sum(np.square(one.spread[name])) for one in scores]
        estimated = np.sqrt(np.mean(squares) / (GROUPS * (GROUPS - 1)))
        # Balls about neighbours are no smooth functions of samples: there it errs to the safe side.
        assert 0.75 < estimated / true < 1.7, name


def test_instruments_are_asked_once_about_all_and_the_answers_divided(monkeypatch):
    asked, measured = [], of_gaussian()
    kind = type(measured.problem)
    judge = staticmethod(lambda images: asked.append(len(images)) or images[:, 0])
    monkeypatch.setattr(kind, "instruments", ("judge", "weights"))
    monkeypatch.setattr(kind, "judge", judge, raising=False)
    monkeypatch.setattr(kind, "weights", np.ones(3), raising=False)

    def right(samples, cond, judge, weights):
        assert len(weights) == 3 and len(samples) == len(cond) == len(judge(samples))
        return float(np.mean(judge(samples)))

    scores = measure({"right": right}, measured._replace(cond=np.zeros((64, 1))))
    assert asked == [64]
    first = measured.samples[:, 0]
    assert scores.values["right"] == pytest.approx(first.mean())
    parts = [first[g::GROUPS].mean() - first.mean() for g in range(GROUPS)]
    np.testing.assert_allclose(scores.spread["right"], parts, rtol=1e-4)


def test_what_takes_no_samples_has_no_spread():
    assert measure({"none": lambda mean: 0.5}, of_gaussian()).spread == {}
    assert measure({"size": lambda samples: 1.0}, of_gaussian(1)).spread == {}
