"""Sums over a sample are not taken in the type it is stored in: beside float64, all that is left is
the rounding of inputs and outputs. float16 ends at 65,504, a norm squared at 256 by 256."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.clocks import distance, gradient_norm, x0_change
from optdiff.problems.captioned_digits import alone
from optdiff.problems.text_to_image import slerp
from optdiff.sample import sample_keys
from optdiff.samplers import per_sample

SHAPE = (2, 77, 2048)  # two prompts, as wide as SDXL has them
SIGMAS = jnp.array([0.5, 80.0])


def drawn(scale=1.0):
    """Two that have something in common."""
    x = jax.random.normal(jax.random.key(0), SHAPE)
    return scale * (x + x[:1])


def updated(tx, updates):
    tx, levels = per_sample(tx), {"sigma": SIGMAS, "sigma_next": SIGMAS / 2, "steps_left": 1}
    keys = sample_keys(0, len(updates))
    state = tx.init(updates)
    for _ in range(3):
        out, state = tx.update(updates, state, updates, key=keys, eps_fn=None, **levels)
    return out


SUMS = {
    "slerp": (lambda x: slerp(x[:1], x[1:], jnp.array([0.5])), drawn()),
    "gradient_norm": (lambda x: gradient_norm(x, x, x, SIGMAS), drawn(300.0)),
    "distance": (lambda x: distance(x, x, x, SIGMAS), drawn(300.0)),
    "x0_change": (lambda x: x0_change(x, -x, x, SIGMAS), drawn(100.0)),
    "normalize": (lambda x: updated(optax.normalize_by_update_norm(), x), drawn(9.0)),
    "clip_by_global_norm": (lambda x: updated(optax.clip_by_global_norm(9.0), x), drawn(9.0)),
    "adam": (lambda x: updated(optax.scale_by_adam(), x), drawn(300.0)),
    "strokes": (
        lambda x: alone(x[..., :3], jnp.array([1, 2]), jnp.array([0, 0])),
        jax.random.uniform(jax.random.key(1), (2, 32, 32, 4)),
    ),
}


DEAR = ("slerp", "normalize", "adam", "strokes")  # many operations, each compiled by itself
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in DEAR else ()) for n in SUMS]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_float64(name, dtype):
    function, x = SUMS[name]
    x = x.astype(dtype)
    rounded, exact = (np.asarray(function(a)).astype(float) for a in (x, x.astype(float)))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert error < float(jnp.finfo(dtype).eps)
