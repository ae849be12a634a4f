"""One small study, reported once for all tests that only read."""

import itertools

import numpy as np
import pytest
from report_rows import job, traces

from optdiff.report import report
from optdiff.results import append


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Three samplers, budgets and seeds: one hole, two failures, one that costs less than asked,
    two network passes an evaluation.
    """
    folder = tmp_path_factory.mktemp("few_step")
    draw = np.random.default_rng(0)
    for sampler, nfe, seed in itertools.product(["ddim", "heun", "adam"], [4, 8, 16], range(3)):
        if sampler == "adam" and nfe == 4:
            continue
        if sampler == "adam" and nfe == 16 and seed > 0:
            append(folder, job(sampler, nfe, seed, error="ValueError: a | b\nand more"))
            continue
        real = float(nfe - 1 if sampler == "heun" else nfe)
        value = draw.uniform(0.1, 1.0)
        metrics = {"w2": value, "recall": 1 / (1 + value)}
        row = job(sampler, nfe, seed, metrics=metrics, nfe=real, passes=2 * real)
        shown = {"samples": np.random.default_rng(seed).random((4, 6, 6)) * (1 + (nfe == 4))}
        shown["exact"] = np.random.default_rng(9).random((4, 6, 6))
        append(folder, row, traces(seed, nfe) | shown)
    return folder


@pytest.fixture(scope="session")
def text(study):
    return report(study)
