"""keep_freed_memory: programs of a CPU stop asking the system for their temporaries."""

import platform
import subprocess
import sys

import pytest

from optdiff.learning.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from optdiff.learning.allocator import keep_freed_memory

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


def test_nothing_happens_with_another_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
