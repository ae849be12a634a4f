"""What metrics are handed, and which of them real samples are measured by."""

import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.analysis.evaluation import Solver, setting
from optdiff.analysis.measuring import Measured, measure
from optdiff.denoisers import Guided
from optdiff.grids import karras
from optdiff.problems import digits
from optdiff.samplers import ddim

SOLVER = Solver(ddim(), karras, 2)


@pytest.fixture
def guided(monkeypatch):
    problem = digits(guidance=2.0)
    monkeypatch.setattr(type(problem.problem), "instruments", ("labels",), raising=False)
    return problem


def kind(samples, cond, labels):
    """Asks for what was asked of each sample, and for something that only the digits have."""
    assert len(samples) == len(cond) and len(labels) == 4000
    return float(jnp.argmax(cond, 1)[0])


def test_what_each_sample_was_asked_to_be_reaches_metrics_and_floor(guided):
    assert isinstance(guided, Guided) and not hasattr(guided, "labels")
    metrics = {
        "kind": kind,
        "gap": lambda samples, reference: float(samples.mean() - reference.mean()),
        "error": lambda samples, exact: 0.0,
        "size": lambda samples: float(len(samples)),
    }
    shared = setting(guided, metrics, sigma=1.0, seed=3, samples=5, batch=5, solver=SOLVER)
    assert shared.cond.shape == (5, 10) and shared.reference.shape == (5, 28, 28)
    assert set(shared.floor) == {"kind", "gap"}  # the others tell nothing of real samples
    assert shared.floor["kind"] == np.argmax(shared.cond[0])
    np.testing.assert_allclose(shared.exact_images, guided.decode(shared.exact))
    drawn = Measured(guided, shared.exact_images, cond=shared.cond)
    assert measure({"kind": kind}, drawn).values == {"kind": shared.floor["kind"]}


def test_what_will_be_refused_is_known_before_sampling(guided):
    asked = []

    def few(samples, reference):
        asked.append("few")
        raise ValueError("5 samples, at least 128 needed")

    def remember(compute):
        asked.append("exact")
        return compute()

    sizes = {"sigma": 1.0, "seed": 3, "samples": 5, "batch": 5, "solver": SOLVER}
    shared = setting(guided, {"few": few}, remember=remember, **sizes)
    assert asked == ["few", "exact"]
    assert shared.refused == {"few": "5 samples, at least 128 needed (~metrics.few leaves it out)"}
    with pytest.raises(TypeError, match="asks for 'ears', which is not among the instruments"):
        setting(guided, {"listens": lambda ears: 0.0}, **sizes)
