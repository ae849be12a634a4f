"""Strict numerics for every test: float64 is available and silent rank promotion raises. And what
proves, on any machine, that a program still lowers for TPU and CUDA."""

import jax
import pytest
from jax import export

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


PLATFORMS = ("tpu", "cuda")


@pytest.fixture(scope="session")
def lower():
    """`lower(function, *arguments)`: lower for both platforms, and refuse captured weights."""

    def check(function, *arguments):
        # Leaves one by one: `export` rebuilds trees from descriptions of arrays, which the type
        # checks that run with the tests refuse in a problem.
        leaves, tree = jax.tree.flatten(arguments)
        flat = jax.jit(lambda *leaves: jax.tree.leaves(function(*tree.unflatten(leaves))))
        program = export.export(flat, platforms=PLATFORMS)(*leaves)
        assert program.platforms == PLATFORMS
        # What weighs more than any program must have come as an argument.
        assert len(program.mlir_module_serialized) < 500_000, "weights were captured as constants"

    return check
