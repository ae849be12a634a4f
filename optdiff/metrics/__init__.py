"""How good samples are: pure functions of arrays, one metric a file.

A metric is called by parameter name: `samples` are what a sampler made, `reference` what good
samples look like (any number of them), `exact` where each sample's own noise should have led,
`cond` what each was asked to be. It returns a float, or a dict of floats where one computation
yields several. Intervals, floors and tables are made by others out of these.
"""

from optdiff.metrics.attribute_accuracy import attribute_accuracy
from optdiff.metrics.clip_score import clip_score
from optdiff.metrics.energy_distance import energy_distance
from optdiff.metrics.frechet import frechet, principal_features
from optdiff.metrics.gaussian_w2 import gaussian_w2, gelbrich
from optdiff.metrics.latent_error import latent_error
from optdiff.metrics.memorization import (
    copied_memorization,
    memorization,
    stroke_memorization,
)
from optdiff.metrics.mmd import mmd
from optdiff.metrics.mode_weights import mode_weights
from optdiff.metrics.of_reconstructions import of_reconstructions
from optdiff.metrics.on_features import on_features, unchanged
from optdiff.metrics.prdc import prdc
from optdiff.metrics.sliced_w2 import sliced_w2
from optdiff.metrics.trajectory_error import trajectory_error

__all__ = [
    "attribute_accuracy",
    "clip_score",
    "copied_memorization",
    "energy_distance",
    "frechet",
    "gaussian_w2",
    "gelbrich",
    "latent_error",
    "memorization",
    "mmd",
    "mode_weights",
    "of_reconstructions",
    "on_features",
    "prdc",
    "principal_features",
    "sliced_w2",
    "stroke_memorization",
    "trajectory_error",
    "unchanged",
]
