"""What `generate.py` is asked for: words taken as they stand, old images recalled, faults refused.

Everything here happens before a checkpoint is opened.
"""

from pathlib import Path
from typing import Any

import numpy as np
from _errors import ConfigError
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from optdiff.images import image_size, read_note

ONE_SIZE = "optdiff.problems.captioned_digits.text_to_image"
"""A problem whose network draws well at no size but its own, whatever that of an image given."""

WORDS = ("prompt", "prompt_to", "prompt_file", "negative", "from", "init_image", "latents", "out")


def verbatim(argument: str) -> str:
    """Quote the words of an argument for Hydra, unless they are quoted whole, a list or null."""
    name, equals, words = argument.partition("=")
    quoted = len(words) > 1 and words[0] == words[-1] and words[0] in "'\""
    list_like = words[:1] == "[" and words[-1:] == "]"
    if name not in WORDS or not equals or quoted or list_like or words == "null":
        return argument
    plain = words.replace("${", r"\${")  # an interpolation, to OmegaConf
    return f"{name}={QuotedString(plain, Quote.single).with_quotes()}"


def completed(arguments: list[str]) -> list[str]:
    """The arguments as Hydra wants them: words quoted, and a path alone taken to be that of a
    published checkpoint, which wants other guidance than the model that comes with optdiff."""
    found = []
    named = {argument.lstrip("+").partition("=")[0] for argument in arguments}
    for argument in arguments:
        # With `from` the rest of the problem is the old image's.
        if argument.startswith("problem.path=") and not {"problem", "from"} & named:
            found.append("problem=stable_diffusion")
        found.append(verbatim(argument))
    return found


def recalled(config: DictConfig) -> tuple[dict[str, Any], int | None]:
    """The configuration asked for; with `from`, that of an image, changed as asked for.

    Returns:
      It, and which of its images is wanted if not all.
    """
    if config["from"] is None:
        refuse([f"{name} must be given" for name in sorted(OmegaConf.missing_keys(config))])
        return OmegaConf.to_container(config, resolve=True), None
    try:
        note = read_note(config["from"])
    except (OSError, ValueError) as error:
        refuse([f"from: {error}"])
    now = OmegaConf.to_container(config, resolve=True)
    asked = note["config"] | {name: now[name] for name in ("from", "out", "preview")}
    for override in HydraConfig.get().overrides.task:
        path = override.lstrip("+").split("=", 1)[0].split(".")
        old, new = asked, now
        for name in path[:-1]:
            old, new = old.setdefault(name, {}), new[name]
        old[path[-1]] = new[path[-1]]
    return asked, note["index"]


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with nothing left open, or all that is wrong with it at once.

    Prompts and guidance scales become lists; a file of prompts its lines; counts and sizes numbers
    where a file given says them.
    """
    c, wrong = dict(config), []
    c["prompt"] = _prompts(c, wrong)
    c["prompt_file"] = None
    c["guidance"] = c["guidance"] if isinstance(c["guidance"], list) else [c["guidance"]]
    scales = all(_number(g) for g in c["guidance"]) and c["guidance"]
    if c["guidance"] != [None] and not scales:
        wrong.append(f"guidance = {config['guidance']!r} must be a number, several, or null")
    _files(c, wrong)
    between = [name for name in ("prompt_to", "seed_to") if c[name] is not None]
    c["images"] = (2 if between else 1) if c["images"] is None else c["images"]
    optional = {name for name in ("preview", "height", "width", "seed_to") if c[name] is None}
    for name in {"images", "nfe", "batch", "preview"} - optional:
        if not (_whole(c[name]) and c[name] > 0):
            wrong.append(f"{name} = {c[name]!r} must be a whole number of at least 1")
    for name in {"height", "width"} - optional:
        if not (_whole(c[name]) and c[name] > 0):  # of what they are multiples the problem knows
            wrong.append(f"{name} = {c[name]!r} must be a positive number of pixels")
    for name in {"seed", "seed_to"} - optional:
        if not _whole(c[name]):
            wrong.append(f"{name} = {c[name]!r} must be a whole number")
    if between and len(c["prompt"]) > 1:
        wrong.append(f"{' and '.join(between)} lead from one prompt, but there are several")
    if c["seed_to"] is not None and c["latents"] is not None:
        wrong.append("seed_to leads from the noise of seed, but latents are given instead")
    if c["init_image"] is None and c["strength"] is not None:
        wrong.append("strength says how far from init_image to start, which is not given")
    elif c["init_image"] is not None:
        c["strength"] = 0.8 if c["strength"] is None else c["strength"]
        if not (_number(c["strength"]) and 0 <= c["strength"] <= 1):
            wrong.append(f"strength = {c['strength']!r} must lie between 0 and 1")
    folder = Path(c["out"])
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        wrong.append(f"out = {c['out']} is there already; nothing is overwritten, name another")
    refuse(wrong)
    return c


def refuse(wrong: list[str]) -> None:
    """End with all that is wrong, if anything is."""
    if wrong:
        raise ConfigError("\n".join(wrong))


def _prompts(c: dict[str, Any], wrong: list[str]) -> list[str]:
    if (c["prompt"] is None) == (c["prompt_file"] is None):
        wrong.append("give one of prompt='...' and prompt_file=FILE")
        return [""]
    prompts = c["prompt"]
    if prompts is None:
        try:
            prompts = Path(c["prompt_file"]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"prompt_file: {error}")
            return [""]
        prompts = [line for line in prompts if line.strip()]
        if not prompts:
            wrong.append(f"prompt_file = {c['prompt_file']} has no line with a prompt")
    # A prompt like 7 is a number to Hydra.
    return [str(p) for p in (prompts if isinstance(prompts, list) else [prompts])]


def _files(c: dict[str, Any], wrong: list[str]) -> None:
    """Look at the files given, and take from them the counts and sizes that are left open."""
    if c["latents"] is not None:
        try:
            noise = np.load(c["latents"], mmap_mode="r")
            if noise.ndim != 4 or not np.isfinite(noise).all():
                wrong.append(f"latents must be four-dimensional and finite, not {noise.shape}")
            c["images"] = len(noise) if c["images"] is None else c["images"]
            if _whole(c["images"]) and c["images"] > len(noise):
                wrong.append(f"{c['images']} images asked for, but {len(noise)} latents given")
        except (OSError, ValueError) as error:
            wrong.append(f"latents: {error}")
    if c["init_image"] is not None:
        try:
            size = image_size(c["init_image"])
        except (OSError, ValueError) as error:
            wrong.append(f"init_image: {error}")
            return
        if c["problem"]["_target_"] != ONE_SIZE:
            for name, pixels in zip(("height", "width"), size, strict=True):
                c[name] = max(8, pixels - pixels % 8) if c[name] is None else c[name]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
