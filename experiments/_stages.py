"""What the stages of training hand to each other, and pictures of what a generator has learned."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from _errors import ConfigError
from _note import finished, read

from optdiff.denoisers import Guided
from optdiff.grids import karras
from optdiff.nn.checkpoint import Pipeline, load_module
from optdiff.nn.clip.tokenizer import load_tokenizer
from optdiff.problems.captioned_digits import SHIPPED
from optdiff.problems.stable_diffusion import from_pipeline
from optdiff.results import leaves
from optdiff.sample import sample, sample_keys
from optdiff.samplers import dpmpp_2m

STAGES = ("tokenizer", "judge", "clip", "vae", "unet")

SIDES = {"judge": ("side",), "clip": ("vision_config", "image_size"), "vae": ("sample_size",)}
"""Where the `config.json` of a network says of what images it is, height and width in pixels."""


def parts(config: Mapping[str, Any]) -> dict[str, Path]:
    """Where the finished networks lie that a stage starts from."""
    needed = {
        "clip": ["tokenizer"],
        "vae": ["clip"] if config["task"].get("perceptual") else [],
        "unet": ["tokenizer", "clip", "vae"],
    }
    return {part: network_folder(config, part) for part in needed.get(config["stage"], [])}


def critics(config: Mapping[str, Any]) -> dict[str, Path]:
    """Where those lie that go beside a finished generator, to say how good its images are."""
    needed = config["critics"] if config["stage"] == "unet" else []
    return {part: network_folder(config, part) for part in needed}


def earlier(parts: Mapping[str, Path]) -> dict[str, Any]:
    """What the stages before this one have learned, by the names that its task calls them."""
    return {
        part: load_tokenizer(path) if part == "tokenizer" else load_module(path)
        for part, path in parts.items()
    }


def network_folder(config: Mapping[str, Any], part: str) -> Path:
    """Where a finished network lies: in this run, else in that of `parts_from`, else in the model
    that comes with optdiff.

    Raises:
      ConfigError: if it was begun and not finished, if there is none, or if it is one of images of
        another size.
    """
    roots = list(dict.fromkeys(Path(config[name]) for name in ("folder", "parts_from")))
    if not all(root.is_dir() for root in roots[1:]):
        raise ConfigError(f"parts_from = {roots[1]} is no folder")
    for root in roots:
        if read(root / part) is not None and not finished(root / part):
            raise ConfigError(f"{root / part} is not finished; go on with stage={part} first")
    models = [*(root / part / "model" for root in roots), SHIPPED / part]
    model = next((model for model in models if model.exists()), None)
    if model is None:
        raise ConfigError(f"there is no {part} in {roots[0]}; begin with stage={part}")
    if part in SIDES:
        geometry = dict(leaves(json.loads((model / "config.json").read_text())))
        side = config["preset"]["side"]
        if (theirs := geometry.get(SIDES[part], side)) != side:
            raise ConfigError(
                f"the {part} in {model} learned images of {theirs} pixels, and preset.side is "
                f"{side}: begin with stage={part}"
            )
    return model


def pictures(
    pipeline: Pipeline, *, prompts: Sequence[str], guidance: float = 3.0, nfe: int = 20
) -> Any:
    """One image of each of the prompts, from the same noise each time."""
    model = from_pipeline(pipeline, prompts=tuple(prompts), guidance=guidance)
    assert isinstance(model, Guided)
    cond, keys = model.problem.prompts, sample_keys(0, len(prompts))
    levels = jnp.asarray(karras(model.schedule, nfe))
    x0, _ = sample(model, dpmpp_2m(), levels, keys, cond=cond)
    return model.decode(x0)
