"""Running `experiments/evaluate.py`, in a process and without one; asking `generate.py`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import hydra
import jax
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import open_dict

SCRIPT = Path(__file__).parents[2] / "experiments/evaluate.py"
CONF = SCRIPT.parents[1] / "conf"
sys.path.insert(0, str(SCRIPT.parent))  # for fixtures and tests alike


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
        if jobs := sys.modules.get("_jobs"):  # a process asks once what is done
            jobs.log.cache_clear()
            jobs.asked.clear()
        with pytest.raises(SystemExit) as end, jax.enable_x64(False):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """`ask(*arguments)`: the configuration that the command line of generate.py would come to, and
    the index of the image that it makes again."""
    from _generate import completed, recalled, settled

    monkeypatch.setenv("OPTDIFF_RUN", "run")
    monkeypatch.chdir(tmp_path)

    def compose(*arguments):
        overrides = completed(list(arguments))
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("generate", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        asked, index = recalled(config)
        return settled(asked, index), index

    return compose
