"""What the stages of training hand to each other, and pictures of what a generator has learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from _sweep import ConfigError

from optdiff.denoisers import Guided
from optdiff.grids import karras
from optdiff.learning.clip import text_encoder
from optdiff.nn.checkpoint import Pipeline, load_module
from optdiff.nn.clip.tokenizer import load_tokenizer
from optdiff.problems.captioned_digits import SHIPPED
from optdiff.problems.stable_diffusion import from_pipeline
from optdiff.sample import sample, sample_keys
from optdiff.samplers import dpmpp_2m

PROMPTS = (
    "a red seven on a yellow background",
    "a small white 3 on blue, top left",
    "a photo of a green 8 on black",
    "the number two in purple ink on white paper",
    "an orange five on a blue background",
    "a big black zero on orange",
    "a handwritten 4, yellow on purple",
    "a blue nine on a red card",
)
"""What a generator is asked for while it learns."""


def parts(root: Path, stage: str, task: dict[str, Any]) -> dict[str, Path]:
    """Where the finished networks lie that a stage starts from."""
    needed = {
        "clip": ["tokenizer"],
        "vae": ["clip"] if task.get("perceptual") else [],
        "unet": ["tokenizer", "clip", "vae"],
    }
    return {part: found(root, part) for part in needed.get(stage, [])}


def earlier(stage: str, parts: Mapping[str, Path], side: int) -> dict[str, Any]:
    """What the stages before this one have learned, by the names that its task calls them.

    Raises:
      ConfigError: if the autoencoder is one of images of another size.
    """
    learned = {
        part: load_tokenizer(path) if part == "tokenizer" else load_module(path)
        for part, path in parts.items()
    }
    if stage == "unet":
        learned["text_encoder"] = text_encoder(learned["clip"])
        if (theirs := learned["vae"].config.sample_size) != side:
            raise ConfigError(
                f"the autoencoder in {parts['vae']} learned images of {theirs} pixels, and "
                f"preset.side is {side}: begin with stage=vae"
            )
    return learned


def found(root: Path, stage: str) -> Path:
    """Where a finished network lies: in this run, or in the model that comes with optdiff if the
    run has not begun that stage.

    Raises:
      ConfigError: if the stage was begun and not finished.
    """
    mine = root / stage / "model"
    if mine.exists():
        return mine
    if (root / stage).exists():
        raise ConfigError(f"{root / stage} is not finished; go on with stage={stage} first")
    if not (SHIPPED / stage).exists():
        raise ConfigError(f"there is no {stage} in {root}; begin with stage={stage}")
    return SHIPPED / stage


def pictures(pipeline: Pipeline, *, guidance: float = 3.0, nfe: int = 20) -> Any:
    """One image of each of the prompts, from the same noise each time."""
    model = from_pipeline(pipeline, prompts=PROMPTS, guidance=guidance)
    assert isinstance(model, Guided)
    cond, keys = model.problem.prompts, sample_keys(0, len(PROMPTS))
    levels = jnp.asarray(karras(model.schedule, nfe))
    x0, _ = sample(model, dpmpp_2m(), levels, keys, cond=cond)
    return model.decode(x0)
