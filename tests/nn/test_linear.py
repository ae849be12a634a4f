"""product and Linear: the product of nnx.Linear, in a form whose gradient is fast on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optdiff.nn.linear import Linear, product


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def test_gradients_are_those_of_the_plain_product():
    x, kernel, g = draw((2, 5, 3), (3, 4), (2, 5, 4))
    for ours, plain in zip(
        *(jax.jit(lambda f=f: jax.vjp(f, x, kernel)[1](g))() for f in (product, jnp.matmul)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-12)


def test_on_a_cpu_both_sides_are_summed_over_rows():
    """What the gradient's speed there rests on: no side is laid out by columns first."""

    def loss(kernel, x):
        value, gate = jnp.split(product(jnp.tanh(x), kernel), 2, -1)
        return (value * jnp.tanh(gate)).sum()

    x, kernel = (a.astype(jnp.float32) for a in draw((8, 64, 32), (32, 128)))
    program = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    assert "lhs_contracting_dims={0}, rhs_contracting_dims={1}" not in program


def test_linear_is_that_of_nnx():
    x = draw((2, 5, 3))[0].astype(jnp.float32)
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    for bias in (True, False):
        ours, theirs = (kind(3, 8, use_bias=bias, **types, rngs=nnx.Rngs(0)) for kind in (
            Linear, nnx.Linear,
        ))  # fmt: skip
        assert ours(x).dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours(x), theirs(x))
