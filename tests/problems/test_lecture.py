"""The lecture's opening as `conf/descend.yaml` sets it, and what results/lecture says of it."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.image import imread
from scipy.spatial.distance import cdist

from optdiff.sample import identity, sample_keys, sample_scan

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def config():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("descend")


def test_plain_descent_at_one_level_ends_on_digits_it_has_seen(config):
    problem, sampler = instantiate(config.problem), instantiate(config.sampler)
    keys = sample_keys(config.seed, 16)
    noise = jax.vmap(lambda key: config.sigma * jax.random.normal(key, (28, 28), "float32"))(keys)
    levels = jnp.full(config.shown[-1] + 1, config.sigma, "float32")
    x0, trace = sample_scan(problem, sampler, levels, keys, x=noise, finish=identity)
    assert (trace.nfe == config.shown[-1]).all()  # one gradient a step
    apart = cdist(np.reshape(x0, (16, -1)), problem.problem.images) / 28  # root mean square
    assert np.sum(apart.min(axis=1) < 0.02) >= 15
    kinds = problem.problem.labels[apart.argmin(axis=1)]
    assert len(set(kinds.tolist())) >= 5


@pytest.mark.slow
def test_one_command_makes_the_study_again(tmp_path):
    subprocess.run(
        [sys.executable, "experiments/descend.py", f"out={tmp_path}"], cwd=ROOT, check=True
    )
    committed, again = (
        imread(where / "descent.png") for where in (ROOT / "results/lecture", tmp_path)
    )
    assert np.abs(committed - again).mean() < 1e-3
    assert (tmp_path / "gradients.md").read_text().count("finite differences") == 2
