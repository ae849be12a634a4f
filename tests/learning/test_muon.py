"""Muon: which weights it turns, how far, and the same on one device and on several."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.learning.optimizers import kernels, muon
from optdiff.nn.checkpoint import load_module
from optdiff.nn.network import network
from optdiff.problems.captioned_digits import SHIPPED


@pytest.mark.parametrize("part", ["unet", "vae", "clip", "judge"])
def test_kernels_are_the_weights_that_multiply(part):
    """All weights with more than one axis, whatever the network, but for embeddings."""
    weights = network(load_module(SHIPPED / part)).weights
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    axes_of = jax.tree.leaves(kernels(weights), is_leaf=lambda x: x is None or isinstance(x, tuple))
    assert len(axes_of) == len(leaves)
    for (path, leaf), axes in zip(leaves, axes_of, strict=True):
        name = jax.tree_util.keystr(path)
        assert (axes is not None) == (leaf.ndim > 1 and not name.endswith("embedding']")), name
        if axes is not None:
            inputs = np.prod([leaf.shape[axis] for axis in axes.reduction_axis])
            assert inputs * leaf.shape[axes.output_axis] == leaf.size


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 8), (3, 64)])
def test_all_directions_of_a_kernel_learn_about_equally_fast(inputs, outputs):
    rate, shape = 1e-2, (3, 3, inputs, outputs)
    optimizer, params = muon(rate), {"kernel": jnp.zeros(shape, jnp.float32)}
    grad = {"kernel": jax.random.normal(jax.random.key(0), shape, jnp.float32)}
    dparams, _ = optimizer.update(grad, optimizer.init(params), params)
    matrix = dparams["kernel"].reshape(9 * inputs, outputs)
    turned = np.linalg.svd(matrix, compute_uv=False)
    around = rate * 0.2 * np.sqrt(max(matrix.shape))
    assert (turned > 0.5 * around).all() and (turned < 1.5 * around).all()
    assert np.linalg.norm(matrix) / np.sqrt(matrix.size) == pytest.approx(0.2 * rate, rel=0.3)


PROGRAM = """
import jax, numpy as np
from optdiff.learning.layouts import replicated, sharded
from optdiff.learning.optimizers import muon
from small_run import arrays, run

kernel = np.asarray(jax.random.normal(jax.random.key(0), (4, 8), "float32"))
params = {"layer": {"kernel": kernel, "bias": np.zeros(8, np.float32)}}

def loss(params, frozen, batch, key):
    y = batch["x"] @ params["layer"]["kernel"] + params["layer"]["bias"][None]
    return ((y - batch["y"]) ** 2).mean(), {}

assert jax.device_count() == 8
one, other = (
    run(steps=20, loss=loss, params=params, optimizer=muon(1e-2), layout=layout)
    for layout in (replicated, sharded)
)
assert not np.allclose(one.params["layer"]["kernel"], kernel, atol=0.01)
for a, b in zip(arrays(one), arrays(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


def test_weights_shared_out_over_devices_learn_what_whole_ones_do():
    forced = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parent,
        env=os.environ | forced,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
