"""Importing optdiff starts no backend: `jax.distributed.initialize` must come before the first."""

import subprocess
import sys

import pytest

EVERY_MODULE = """
import importlib, pkgutil
import optdiff
from jax._src import xla_bridge

for module in pkgutil.walk_packages(optdiff.__path__, "optdiff."):
    importlib.import_module(module.name)
    assert not xla_bridge.backends_are_initialized(), module.name
print(module.name)
"""


@pytest.mark.slow
def test_no_module_starts_a_backend():
    command = [sys.executable, "-c", EVERY_MODULE]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().startswith("optdiff."), "nothing was imported"
