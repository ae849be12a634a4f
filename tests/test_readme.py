"""What the README shows works as it stands."""

import re
import types
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml

from optdiff.grids import karras
from optdiff.problems import mixture
from optdiff.sample import sample, sample_keys
from optdiff.samplers import gradient_estimation

README = (Path(__file__).parents[1] / "README.md").read_text()


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
