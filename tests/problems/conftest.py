"""The digits in float64, made once, and four of them in noise: same shapes compile once. And a
folder of the shipped model's layout."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import digits_folder

from optdiff.problems import digits
from optdiff.sample import sample_keys

SMOOTHING = 0.125  # the same number in float32 and float64


@pytest.fixture(scope="session")
def single():
    """The digits as in production: float32."""
    return digits(smoothing=SMOOTHING)


@pytest.fixture(scope="session")
def handwritten(single):
    """The same in float64."""
    return jax.tree.map(
        lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a, single
    )


@pytest.fixture(scope="session")
def levels():
    """A noise level for each of four samples."""
    return jnp.array([0.02, 0.3, 2.0, 80.0])


@pytest.fixture(scope="session")
def noisy(handwritten, levels):
    """A digit at each of the levels."""
    return handwritten.prior(sample_keys(0, 4), levels)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """A folder as `optdiff/pretrained/digits` is one, tiny and with random weights."""
    return digits_folder.write(tmp_path_factory.mktemp("digits") / "model")
