"""Every metric worsens, step by step, as samples are corrupted more and more."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

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
MEANS = 3 * RNG.normal(size=(5, 12))
WEIGHTS = np.full(5, 0.2)
SPREAD = MEANS.T @ MEANS / 5 - np.outer(MEANS.mean(0), MEANS.mean(0))


def draw(count):
    return MEANS[RNG.integers(5, size=count)] + RNG.normal(size=(count, 12))


SAMPLES, REFERENCE = draw(400), draw(500)
NOISE, DIRECTION = RNG.normal(size=(400, 12)), RNG.normal(size=12)
HELD_OUT = draw(300)
# Three questions, answered by the nearest mode in four of the coordinates each; what samples were
# asked to be is what the clean ones are.
EYES = dict(zip(("digit", "ink", "paper"), np.split(np.arange(12), 3), strict=True))


def judge(samples):
    squares = (samples[:, None] - MEANS) ** 2
    return SimpleNamespace(**{name: -squares[..., eye].sum(-1) for name, eye in EYES.items()})


def agreement(samples, cond):
    """Cosine of each sample with its own mode."""
    mode = MEANS[cond["attributes"]["digit"]]
    length = np.linalg.norm(samples, axis=1) * np.linalg.norm(mode, axis=1)
    return (samples * mode).sum(1) / length


COND = {
    "attributes": {name: getattr(judge(SAMPLES), name).argmax(1) for name in EYES},
    "mentions": {name: np.ones(400, bool) for name in EYES},
}


def noise(level):
    return SAMPLES + 3 * level * NOISE


def shift(level):
    return SAMPLES + level * DIRECTION


def shrink(level):
    """Towards the mean: too little variety, as too much guidance gives."""
    return SAMPLES.mean(0) + (1 - level) * (SAMPLES - SAMPLES.mean(0))


def outliers(level):
    """A growing share of samples that went elsewhere."""
    return np.where(np.arange(400)[:, None] < level * 400, 20 * NOISE, SAMPLES)


def drop(level):
    """Whole modes go, one after the other, and the rest takes their place."""
    kept = 5 - round(5 * level)
    return MEANS[RNG.integers(kept, size=400)] + NOISE


def swap(level):
    """A growing share of samples that are good ones of something else."""
    return np.where(np.arange(400)[:, None] < level * 400, np.roll(SAMPLES, 7, axis=0), SAMPLES)


def copy(level):
    """A growing share that is learnt by heart."""
    return np.where(np.arange(400)[:, None] < level * 400, REFERENCE[:400], SAMPLES)


def of(metric, key, sign=1):
    return lambda samples: sign * metric(samples)[key]


neighbours = partial(prdc, reference=REFERENCE)
shows = partial(attribute_accuracy, cond=COND, judge=judge)
described = partial(
    on_features({"energy": energy_distance, "prdc": prdc}, prefix="seen_"),
    reference=REFERENCE,
    features=lambda images: np.tanh(images[:, :6] / 4),
)
agrees = partial(clip_score, cond=COND, agreement=agreement)
modes = partial(mode_weights, means=MEANS, weights=WEIGHTS, stds=np.ones(5))

DISTANCES = {
    "trajectory_error": partial(trajectory_error, exact=SAMPLES),
    "sliced_w2": partial(sliced_w2, reference=REFERENCE),
    "mmd": partial(mmd, reference=REFERENCE),
    "energy_distance": partial(energy_distance, reference=REFERENCE),
    "frechet": partial(frechet, reference=REFERENCE),
    "gelbrich": partial(gelbrich, mean=MEANS.mean(0), cov=SPREAD + np.eye(12)),
}
WORSE = {name: (metric, [noise, shift, shrink, outliers]) for name, metric in DISTANCES.items()} | {
    "precision": (of(neighbours, "precision", -1), [noise, shift, outliers]),
    "recall": (of(neighbours, "recall", -1), [shrink, drop]),
    "density": (of(neighbours, "density", -1), [noise, shift, outliers]),
    "coverage": (of(neighbours, "coverage", -1), [noise, shift, shrink, outliers, drop]),
    "attribute_accuracy": (of(shows, "attribute_accuracy", -1), [noise, shift, outliers, swap]),
    "digit_accuracy": (of(shows, "digit_accuracy", -1), [noise, outliers, swap]),
    "ink_accuracy": (of(shows, "ink_accuracy", -1), [noise, outliers, swap]),
    "paper_accuracy": (of(shows, "paper_accuracy", -1), [noise, outliers, swap]),
    "clip_score": (lambda samples: -agrees(samples), [noise, shift, outliers, swap]),
    "seen_energy": (of(described, "seen_energy"), [noise, shift, shrink, outliers, drop]),
    "seen_coverage": (of(described, "seen_coverage", -1), [noise, shift, shrink, drop]),
    "memorization": (partial(memorization, training=REFERENCE, held_out=HELD_OUT), [copy]),
    "mode_error": (of(modes, "mode_error"), [drop]),
    "missed_modes": (of(modes, "missed_modes"), [drop]),
}
for name in ("sliced_w2", "mmd", "energy_distance", "frechet", "gelbrich"):
    WORSE[name][1].append(drop)


@pytest.mark.parametrize(
    ("name", "corrupt"),
    [(name, corrupt) for name, (_, ways) in WORSE.items() for corrupt in ways],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_worsens_at_every_step(name, corrupt):
    metric, _ = WORSE[name]
    badness = [metric(corrupt(level)) for level in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert np.all(np.diff(badness) > 0), badness
