"""Freed memory: kept for the next call of a program, given back after its compilation."""

import platform
import subprocess
import sys

import pytest

from optdiff.allocator import give_back_after_compiling, keep_freed_memory

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from optdiff.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

@jax.jit
def step(x):  # 64 MB of temporaries
    return jnp.outer(x, x) @ x

x = jnp.ones(2**12)
for _ in range(40):  # while the heap grows to what it needs
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def asked_for(how):
    """Bytes that twenty calls had the system hand out."""
    run = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_pages_are_handed_out_once():
    assert asked_for("given back") > 20 * 2**26
    assert asked_for("kept") < 5 * 2**26


COMPILED = """
import sys
from types import SimpleNamespace
import jax, jax.numpy as jnp
from optdiff import allocator

trims = []
allocator._glibc = lambda: SimpleNamespace(malloc_trim=trims.append)
allocator.WORTH_IT = float(sys.argv[1])
assert allocator.give_back_after_compiling()
assert allocator.give_back_after_compiling()  # and listens once
program, x = jax.jit(lambda x: x @ x), jnp.ones((8, 8))
before = len(trims)
program(x), program(x)
print(len(trims) - before)
"""


@pytest.mark.parametrize("worth_it, times", [(0.0, 1), (1e3, 0)])
def test_each_long_compilation_is_followed_by_one_return(worth_it, times):
    run = [sys.executable, "-c", COMPILED, str(worth_it)]
    assert int(subprocess.run(run, check=True, capture_output=True, text=True).stdout) == times


def test_nothing_happens_with_another_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    give_back_after_compiling.cache_clear()
    assert not give_back_after_compiling()
    give_back_after_compiling.cache_clear()
