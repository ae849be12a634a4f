"""Strict numerics for every test: float64 is available and silent rank promotion raises. One cache
of compiled programs for all that a run starts. And what proves, on any machine, that a program
still lowers for TPU and CUDA."""

import atexit
import os
import shutil
import tempfile

import jax
import pytest
from jax import export

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is what most tests spend most of their time on. The first process of a run makes the
# folder; pytest's workers, and the processes that tests start, find it in their environment.
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
if PROGRAMS not in os.environ:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="optdiff-programs-")
    atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

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
