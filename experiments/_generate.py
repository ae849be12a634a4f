"""What `generate.py` is asked for: words taken as they stand, old images recalled, faults refused.

Everything here happens before a checkpoint is opened.
"""

import re
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from _build import check_targets
from _errors import ConfigError
from _recall import choices, laid_over, read
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from optdiff.images import image_size

ONE_SIZE = "optdiff.problems.captioned_digits.text_to_image"
"""A problem whose network draws well at no size but its own, whatever that of an image given."""

CONFIGS = ("--config-dir", "-cd")
"""Hydra's flags that name a folder of configs of one's own."""

WORDS = ("prompt", "prompt_to", "prompt_file", "negative", "from", "init_image", "latents", "out")


def verbatim(argument: str) -> str:
    """Quote the words of an argument for Hydra, unless that reads them as a quoted string, a list
    or null."""
    name, equals, words = argument.partition("=")
    if name not in WORDS or not equals or words == "null":
        return argument
    if words[:1] in ("'", '"', "[") and isinstance(_parsed(argument), str | list):
        return argument
    return f"{name}={QuotedString(_literal(words), Quote.single).with_quotes()}"


def completed(arguments: list[str]) -> list[str]:
    """The arguments as Hydra wants them: words quoted; a path alone taken to be that of a published
    checkpoint, which wants other guidance than the model that comes with optdiff; and with `from`,
    the choices that its image was made with.

    Raises:
      ConfigError: if that image does not say, or says what is not to be run.
    """
    words = [word for a in arguments for word in (a.split("=", 1) if a[:1] == "-" else [a])]
    arguments = [verbatim(argument) for argument in arguments]
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    asked = {a.lstrip("+").partition("=")[0]: a for a in overrides}
    if image := _parsed(asked.get("from", "")):
        folder = next((value for flag, value in pairwise(words) if flag in CONFIGS), None)
        trust = _parsed(asked.get("trust", "")) is True
        more = choices(str(image), chosen=list(asked), folder=folder, trust=trust)
        return [*arguments, *more, f"changed=[{','.join(asked)}]"]
    path_alone = "problem.path" in asked and "problem" not in asked
    return [*arguments, *(["problem=stable_diffusion"] if path_alone else [])]


def recalled(config: DictConfig) -> tuple[dict[str, Any], int | None]:
    """The configuration asked for; with `from`, that of an image, changed as asked for.

    Returns:
      It, and which of its images is wanted if not all.
    """
    asked = OmegaConf.to_container(config, resolve=True)
    if asked["from"] is None:
        refuse([f"{name} must be given" for name in sorted(OmegaConf.missing_keys(config))])
    note = {"index": None} if asked["from"] is None else read(asked["from"])
    asked = asked if asked["from"] is None else laid_over(asked, note)
    check_targets(asked, "config")
    return asked, note["index"]


def settled(config: dict[str, Any], index: int | None = None) -> dict[str, Any]:
    """The configuration with nothing left open, or all that is wrong with it at once; also if it
    makes no image of that index.

    Prompts and guidance scales become lists; a file of prompts its lines; counts and sizes numbers
    where a file given says them.
    """
    c, wrong = {"grid": None} | config, []
    c |= {"prompt": _prompts(c, wrong), "prompt_file": None}
    c |= {"guidance": _scales(c, wrong)}
    c |= {"negative": _negative(c, wrong)}
    _files(c, wrong)
    between = [name for name in ("prompt_to", "seed_to") if c[name] is not None]
    c["images"] = (2 if between else 1) if c["images"] is None else c["images"]
    _numbers(c, wrong)
    if between and len(c["prompt"]) > 1:
        wrong.append(f"{' and '.join(between)} lead from one prompt, but there are several")
    if c["prompt_to"] is not None:
        c["prompt_to"] = _word("prompt_to", c["prompt_to"], wrong)
    if c["seed_to"] is not None and c["latents"] is not None:
        wrong.append("seed_to leads from the noise of seed, but latents are given instead")
    if c["init_image"] is None and c["strength"] is not None:
        wrong.append("strength says how far from init_image to start, which is not given")
    elif c["init_image"] is not None:
        c["strength"] = 0.8 if c["strength"] is None else c["strength"]
        if not (_number(c["strength"]) and 0 <= c["strength"] <= 1):
            wrong.append(f"strength = {c['strength']!r} must lie between 0 and 1")
    folder = Path(str(c["out"]))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        wrong.append(f"out = {c['out']} is there already; nothing is overwritten, name another")
    if index is not None and not wrong:
        count = len(c["guidance"]) * len(c["prompt"]) * c["images"]
        if index >= count:
            wrong.append(f"from: it is image {index} of its call, counted from 0, but now {count} "
                         "are asked for; give its grid.png")  # fmt: skip
    refuse(wrong)
    return c


def _literal(words: str) -> str:
    """Words that OmegaConf looks for no interpolation in."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", words)


def _parsed(argument: str) -> Any:
    """The value of an override; None if it is not one."""
    try:
        return OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return None


def captions(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What stands above the columns and the rows of a settled configuration's grid."""
    c, count = config, config["images"]
    noise = f"seed {c['seed']}" if c["latents"] is None else "latents"
    heads = [f"{noise}, image {i}" for i in range(count)]
    if c["prompt_to"] is not None or c["seed_to"] is not None:
        heads = [f"{100 * i / max(1, count - 1):.0f} %" for i in range(count)]
        heads[0] += f" seed {c['seed']}" * (c["seed_to"] is not None)
        heads[-1] += f" seed {c['seed_to']}" * (c["seed_to"] is not None)
    prompts = [p if c["prompt_to"] is None else f"{p} → {c['prompt_to']}" for p in c["prompt"]]
    rows = [
        f"{prompt}  ({'no guidance' if scale is None else f'guidance {scale:g}'})"
        for scale in c["guidance"]
        for prompt in prompts
    ]
    return heads, rows


def refuse(wrong: list[str]) -> None:
    """End with all that is wrong, if anything is."""
    if wrong:
        raise ConfigError("\n".join(wrong))


def _prompts(c: dict[str, Any], wrong: list[str]) -> list[str]:
    """All prompts, from the configuration or the lines of a file."""
    if (c["prompt"] is None) == (c["prompt_file"] is None):
        wrong.append("give one of prompt='...' and prompt_file=FILE")
        return [""]
    if c["prompt"] is not None:
        prompts = c["prompt"] if isinstance(c["prompt"], list) else [c["prompt"]]
        return [_word("prompt", prompt, wrong) for prompt in prompts or [None]]
    try:
        with open(str(c["prompt_file"]), encoding="utf-8-sig", newline="") as file:
            lines = re.split("\r?\n", file.read())  # there are more ends of a line in Unicode
    except (OSError, UnicodeDecodeError) as error:
        wrong.append(f"prompt_file: {error}")
        return [""]
    if not (prompts := [line for line in lines if line.strip()]):
        wrong.append(f"prompt_file = {c['prompt_file']} has no line with a prompt")
    return prompts


def _word(name: str, value: Any, wrong: list[str]) -> str:
    """A prompt as text: one like 7 is a number to Hydra."""
    if not isinstance(value, str | int | float):
        wrong.append(f"{name} = {value!r} must be words")
    return str(value)


def _scales(c: dict[str, Any], wrong: list[str]) -> list[float | None]:
    """The guidance scales, None for those that are none: up to 1, as in diffusers, where the
    network runs once and reads the prompt alone, as models without guidance are meant to."""
    scales = c["guidance"] if isinstance(c["guidance"], list) else [c["guidance"]]
    if not scales or not all(scale is None or _number(scale) for scale in scales):
        wrong.append(f"guidance = {c['guidance']!r} must be a number, several, or null")
        return [c["guidance"]]
    return [None if scale is None or scale <= 1 else scale for scale in scales]


def _negative(c: dict[str, Any], wrong: list[str]) -> str | list[str] | None:
    """What guidance leads away from: one for all prompts, or one for each."""
    negative = c["negative"]
    if negative is None:
        return None
    if all(scale is None for scale in c["guidance"]):
        wrong.append(f"negative = {negative!r} is what guidance leads away from, but there is "
                     "none: guidance must be above 1")  # fmt: skip
    if not isinstance(negative, list):
        return _word("negative", negative, wrong)
    if len(negative) != len(c["prompt"]):
        wrong.append(f"{len(negative)} of negative for {len(c['prompt'])} of prompt: give one for "
                     "each, or one for all")  # fmt: skip
    return [_word("negative", each, wrong) for each in negative]


def _numbers(c: dict[str, Any], wrong: list[str]) -> None:
    """Look at the counts, sizes and seeds."""
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


def _files(c: dict[str, Any], wrong: list[str]) -> None:
    """Look at the files given, and take from them the counts and sizes that are left open."""
    if c["latents"] is not None:
        try:
            noise = np.load(str(c["latents"]), mmap_mode="r")
            shape = getattr(noise, "shape", ())
            if len(shape) != 4 or noise.dtype.kind not in "fiu" or not np.isfinite(noise).all():
                wrong.append(f"latents must be four-dimensional and finite, not {shape}")
            c["images"] = len(noise) if c["images"] is None else c["images"]
            if _whole(c["images"]) and c["images"] > len(noise):
                wrong.append(f"{c['images']} images asked for, but {len(noise)} latents given")
        except (OSError, ValueError, EOFError) as error:
            wrong.append(f"latents: {error}")
    if c["init_image"] is not None:
        try:
            size = image_size(str(c["init_image"]))
        except (OSError, ValueError) as error:
            wrong.append(f"init_image: {error}")
            return
        if c["problem"]["_target_"] != ONE_SIZE:
            for name, pixels in zip(("height", "width"), size, strict=True):
                c[name] = max(8, pixels - pixels % 8) if c[name] is None else c[name]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
