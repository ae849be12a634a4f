"""What the README shows works as it stands."""

import re
import shlex
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from _build import check_targets
from _generate import completed
from train import check_numbers

from optdiff.grids import karras
from optdiff.problems import mixture
from optdiff.sample import sample, sample_keys
from optdiff.samplers import gradient_estimation

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = {"evaluate": "config", "sweep": "benchmark/sweep", "training": "benchmark/training"}
"""Of scripts whose configuration is not called as they are."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_library_example_runs():
    scope: dict = {}
    exec(blocks("python")[0], scope)
    assert scope["images"].shape == (16, 28, 28) and set(scope["trace"].nfe.tolist()) == {12}


def test_the_tutorial_sampler_is_gradient_estimation():
    module = types.ModuleType("mine")
    exec(blocks("python")[1], module.__dict__)
    settings = yaml.safe_load(blocks("yaml")[0])
    target = settings.pop("_target_")
    assert target == "optdiff.samplers.mine.second_look"
    problem, keys = mixture(), sample_keys(0, 4)
    levels = karras(problem.schedule, 6)
    ours, _ = sample(problem, module.second_look(**settings), levels, keys)
    theirs, _ = sample(problem, gradient_estimation(1 + settings["weight"]), levels, keys)
    assert jnp.linalg.norm(ours - theirs) < 1e-10 * jnp.linalg.norm(theirs)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_what_it_links_to_exists(path):
    assert (Path(__file__).parents[1] / path).exists()


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("python experiments/")]


@pytest.mark.parametrize("command", commands())
def test_what_it_says_to_type_can_be_composed(command, monkeypatch):
    monkeypatch.setenv("OPTDIFF_RUN", "run")
    _, script, *rest = shlex.split(command, comments=True)
    asked = [word for word in rest if word != "-m" and not word.startswith("hydra/")]
    name = asked.pop(0) if script.endswith("benchmark.py") else Path(script).stem
    asked = completed(asked) if name == "generate" else asked
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    folder = ROOT / "conf" / ("benchmark" if name == "network" else "")
    with initialize_config_dir(str(folder), version_base="1.3"):
        for job in jobs(asked):
            config = compose(CONFIGS.get(name, name), job, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
            settled = OmegaConf.to_container(config, resolve=True)
            check_targets({k: v for k, v in settled.items() if k != "preset"}, "config")
            if name == "train":
                check_numbers(settled)


def jobs(asked: list[str]) -> list[list[str]]:
    """Some jobs of a sweep: each of the values swept over is in one of them."""
    parsed = OverridesParser.create().parse_overrides(asked)
    values = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [text]
        for o, text in zip(parsed, asked, strict=True)
    ]
    return [[v[i % len(v)] for v in values] for i in range(max(map(len, values), default=1))]
