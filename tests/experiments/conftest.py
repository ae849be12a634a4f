"""Running `experiments/evaluate.py`: in a process, and without one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

SCRIPT = Path(__file__).parents[2] / "experiments/evaluate.py"


@pytest.fixture
def command(tmp_path):
    """`command(*arguments)` runs experiments/evaluate.py in an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command, environment = [sys.executable, SCRIPT, *arguments], os.environ | environment
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 600}
        return subprocess.run(command, env=environment, **options)

    return run


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """`evaluate(*arguments)` is what `command` does, without the start of a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as Python does for a script
    # Hydra looks for plugins once a process, and may have done so where ours could not be seen.
    monkeypatch.delitem(Singleton._instances, Plugins, raising=False)
    for name in ("OPTDIFF_RUN", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")  # the script sets them; here that is undone

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        for name in ("evaluate", "_jobs"):  # which remember what is done
            monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(SystemExit) as end, jax.enable_x64(False):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capsys.readouterr())

    return run
