"""No key is used twice, by JAX's own checker: in what problems draw, and in both modes."""

import jax
import jax.numpy as jnp
import optax
import pytest

from optdiff.problems import digits, energy, gaussian, mixture
from optdiff.sample import sample, sample_keys, start
from optdiff.samplers import from_transformation

PROBLEMS = {
    "gaussian": gaussian(dim=2),
    "mixture": mixture(modes=2, dim=2),
    "energy": energy(mixture(modes=2, dim=2)),
    "digits": digits(),
    "guided digits": digits(guidance=2.0),
}


@pytest.fixture(autouse=True)
def checked():
    with jax.debug_key_reuse(True):
        yield


def test_the_checker_sees_a_key_that_is_used_twice():
    key = jax.random.key(0)
    jax.random.normal(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_use_no_key_twice(name):
    problem, keys = PROBLEMS[name], lambda: sample_keys(0, 3)
    cond = problem.condition(keys())
    start(problem, keys(), jnp.array(1.0), cond)
    problem.reference(keys(), cond)
    if hasattr(problem, "target"):
        problem.target(keys(), cond)


def test_the_driver_uses_no_key_twice():
    """In host mode, each step by itself. The checker takes the two halves of a split for one key
    where they are unpacked inside a compiled function, as `renoise` does, so not with that."""
    levels, sampler = jnp.array([4.0, 2.0, 1.0]), from_transformation(optax.add_noise(1.0, 0.0, 0))
    sample(PROBLEMS["gaussian"], sampler, levels, sample_keys(0, 3))
