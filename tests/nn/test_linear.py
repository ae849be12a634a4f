"""product, bilinear and Linear: the products of nnx.Linear, with derivatives in every direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from optdiff.nn.linear import Linear, bilinear, product


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_derivatives_in_both_directions(batch):
    def function(x, kernel):
        return product(jnp.asarray(x), jnp.asarray(kernel))

    check_grads(function, draw((*batch, 3), (3, 4)), order=2)


def test_gradients_are_those_of_the_plain_product():
    x, kernel, g = draw((2, 5, 3), (3, 4), (2, 5, 4))
    for ours, plain in zip(
        *(jax.jit(lambda f=f: jax.vjp(f, x, kernel)[1](g))() for f in (product, jnp.matmul)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-12)


def test_over_a_batch_of_kernels():
    x, kernels = draw((2, 5, 3), (2, 3, 4))
    one = jax.grad(lambda kernel, x: jnp.square(product(x, kernel)).sum())
    many = jax.vmap(one)(kernels, x)
    np.testing.assert_allclose(many[1], one(kernels[1], x[1]), rtol=1e-12)


@pytest.mark.parametrize("argument", [0, 1])
def test_what_is_not_differentiated_costs_nothing(argument):
    x, kernel = draw((5, 3), (3, 4))
    called = []

    def told(name):
        return lambda x, kernel: called.append(name) or x @ kernel

    times = bilinear(told("value"), told("along x"), told("along kernel"))
    jax.grad(lambda *args: times(*args).sum(), argument)(x, kernel)
    assert set(called) == {"value", ("along x", "along kernel")[argument]}


def test_on_a_cpu_both_sides_are_summed_over_rows():
    """What the gradient's speed there rests on: no side is laid out by columns first."""

    def loss(kernel, x):
        value, gate = jnp.split(product(jnp.tanh(x), kernel), 2, -1)
        return (value * jnp.tanh(gate)).sum()

    x, kernel = (a.astype(jnp.float32) for a in draw((8, 64, 32), (32, 128)))
    program = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    assert "lhs_contracting_dims={0}, rhs_contracting_dims={1}" not in program


def test_elsewhere_nothing_is_added():
    x, kernel = draw((5, 3), (3, 4))
    step = jax.jit(jax.grad(lambda kernel: product(x, kernel).sum()))
    for platform, barrier in (("cpu", True), ("cuda", False), ("tpu", False)):
        exported = jax.export.export(step, platforms=[platform])(kernel)
        assert ("optimization_barrier" in exported.mlir_module()) == barrier


def test_linear_is_that_of_nnx():
    x = draw((2, 5, 3))[0].astype(jnp.float32)
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    for bias in (True, False):
        ours, theirs = (kind(3, 8, use_bias=bias, **types, rngs=nnx.Rngs(0)) for kind in (
            Linear, nnx.Linear,
        ))  # fmt: skip
        assert ours(x).dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours(x), theirs(x))
