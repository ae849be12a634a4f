"""Generate images from prompts, or from an image and prompts, with a text-to-image problem.

python experiments/generate.py prompt="a red seven on a yellow background" images=4
python experiments/generate.py prompt="a blue 3 on white" prompt_to="a blue 8 on white" images=7
python experiments/generate.py problem.path=FOLDER prompt="an astronaut" "guidance=[1,3,7,14]"
python experiments/generate.py from=outputs/.../000.png
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import _help
import hydra
import jax
import jax.numpy as jnp
import numpy as np
from _build import build
from _errors import as_overrides
from _generate import captions, completed, recalled, refuse, settled
from _progress import bar
from _recall import note_of
from _sweep import end_with_parent, run, single
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from optdiff.allocator import give_back_after_compiling
from optdiff.cost import levels_within
from optdiff.denoisers import Guided
from optdiff.images import read_image, sheet, tile, to_pixels, write_png
from optdiff.nn.tensorfile import CheckpointError
from optdiff.problems.text_to_image import TextToImage, slerp
from optdiff.sample import Step, last_denoising, sample, sample_keys, start
from optdiff.scheduler_config import Route, from_strength
from optdiff.types import Cond, Keys, Samples


@hydra.main(version_base="1.3", config_path="../conf", config_name="generate")
def main(config: DictConfig) -> None:
    end_with_parent()
    give_back_after_compiling()
    given, index = recalled(config)
    if not single():  # several jobs share a place, each in a folder of its own
        given["out"] = f"{given['out']}/{HydraConfig.get().job.num}"
    config = settled(given, index)
    make(config, Path(config["out"]), index)


def make(config: dict[str, Any], folder: Path, only: int | None) -> None:
    """`generate`, or in a line why not."""
    try:
        generate(config, folder, only)
    except FloatingPointError as error:
        float16 = config["problem"].get("dtype") == "float16"
        hint = ": float16 holds no numbers above 65504, problem.dtype=bfloat16 does" * float16
        refuse([f"{error}{hint}"])
    except BrokenPipeError:
        raise
    except (OSError, KeyboardInterrupt) as error:
        made = len([*folder.glob("[0-9]*.png")])
        print(
            f"{error or 'interrupted'}; {made} finished images are in {folder}. Nothing goes on "
            "from there: the same command makes all anew, with another out=... if it names one",
            file=sys.stderr,
        )
        sys.exit(1 if isinstance(error, OSError) else 130)


def generate(config: dict[str, Any], folder: Path, only: int | None = None) -> None:
    """Make the images of a settled configuration, or only one of them, and write them down."""
    scales, end, negative = (config[name] for name in ("guidance", "prompt_to", "negative"))
    prompts = config["prompt"] + ([] if end is None else [end])
    negatives = negative if isinstance(negative, list) else []  # one for each prompt
    problem = assemble(
        config,
        prompts=prompts + negatives,
        negative=None if negatives else negative,
        guidance=max((scale for scale in scales if scale is not None), default=None),
    )
    model = getattr(problem, "problem", problem)  # guidance wraps it
    encoded, several = model.prompts, partial(jnp.repeat, repeats=config["images"], axis=0)
    model = dataclasses.replace(model, prompts=jax.tree.map(lambda e: e[: len(prompts)], encoded))
    without = jax.tree.map(lambda leaf: several(leaf[len(prompts) :]), encoded)
    sampler = build(config["sampler"])
    way = route(config, model, levels_within(sampler, config["nfe"], model.shape))
    keys, noise, cond = starts(config, model)
    x = begin(config, model, noise, way)
    # Prompts are in cond by now; as leaves of the problem their number would be compiled in.
    silent = dataclasses.replace(model, prompts=None, scheduler=None)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse([f"out: {error}"])
    if only is None:
        np.save(folder / "latents.npy", noise[: config["images"]])
    note = note_of(config)
    count, batch = len(x), min(config["batch"], len(x))
    jobs = [(row, first) for row in range(len(scales)) for first in range(0, count, batch)]
    if only is not None:  # with the company it had, whose number may move its last bits
        jobs = [job for job in jobs if job[0] * count + job[1] <= only][-1:]
    pictures, previews, numbers = [], {}, []
    with bar(len(jobs) * len(way.levels), "step") as moving:
        for row, first in jobs:
            chosen = np.arange(first, first + batch) % count  # filled up: one shape, one program
            number = row * count + first
            part = slice(number, number + count - first)
            watch = partial(step, moving, model, folder, part, config["preview"], previews)
            take = partial(jax.tree.map, lambda leaf: leaf[chosen])  # noqa: B023
            guided = silent
            if scales[row] is not None:
                uncond = take(without) if negatives else problem.uncond
                guided = Guided(silent, float(scales[row]), uncond)
            x0, _ = sample(
                guided, sampler, way.levels, take(keys), cond=take(cond), x=take(x),
                finish=way.finish, on_step=watch,
            )  # fmt: skip
            images = to_pixels(model.decode(x0))[: count - first]
            moving.update()
            previews.setdefault("end", []).extend(images)
            numbers += [f"{i:03}" for i in range(number, number + len(images))]
            for i, pixels in enumerate(images, number):
                if only in (None, i):
                    write_png(folder / f"{i:03}.png", pixels, note | {"index": i})
                    pictures.append(pixels)
    if config["preview"]:
        shown = np.stack([*previews.values()], axis=1)  # (images, steps, h, w, 3)
        path = sheet(shown.reshape(-1, *shown.shape[2:]), columns=[*previews], rows=numbers)
        write_png(folder / "preview.png", path, note | {"index": None})
    if only is None:
        columns, rows = captions(config)
        whole = sheet(np.stack(pictures), columns=columns, rows=rows)
        write_png(folder / "grid.png", whole, note | {"index": None})
    print(folder / ("grid.png" if only is None else f"{only:03}.png"))


def assemble(config: dict[str, Any], **asked: Any) -> Any:
    """The problem as it is asked for here, or what its checkpoint lacks."""
    asked |= {name: config[name] for name in ("height", "width")}
    # Words must not pass through Hydra again, which would look for interpolations in them.
    make = build(config["problem"] | {"_partial_": True})
    try:
        return make(**asked)
    except (CheckpointError, ValueError) as error:
        ours = {name: value for name, value in config["problem"].items() if name not in config}
        refuse([as_overrides(f"problem: {error}", "problem", ours)])


def route(config: dict[str, Any], model: TextToImage, n: int) -> Route:
    """Where to step, from noise or from the strength asked for, and how to finish."""
    strength = 1.0 if config["strength"] is None else config["strength"]
    try:
        if config.get("grid") is None:
            module, _, name = config["sampler"]["_target_"].rpartition(".")
            ours = f"{module}.".startswith("optdiff.samplers.")  # a name alone says no method
            method = name if ours else ""
            return model.scheduler.route(n, sampler=method, strength=strength)
        levels = build(config["grid"])(model.schedule, n)
    except ValueError as error:
        refuse([str(error)])
    levels = from_strength(levels, model.schedule, strength)
    return Route(levels, jnp.sqrt(1.0 + levels[0] ** 2), last_denoising)


def starts(config: dict[str, Any], model: TextToImage) -> tuple[Keys, Samples, Cond]:
    """Key, unit noise and condition of each image of one guidance scale, prompt after prompt."""
    images, prompts = config["images"], len(config["prompt"])
    keys, level = sample_keys(config["seed"], images), jnp.zeros(())
    between = jnp.linspace(0.0, 1.0, images)
    cond = jax.tree.map(lambda leaf: jnp.repeat(leaf, images, axis=0), model.prompts)
    if config["prompt_to"] is not None:
        cond = jax.tree.map(lambda leaf: slerp(leaf[:1], leaf[1:], between), model.prompts)
    noise = given_noise(config, model) if config["latents"] else start(model, keys, level)
    if config["seed_to"] is not None:
        noise = slerp(noise[:1], start(model, sample_keys(config["seed_to"], 1), level), between)
    elif config["prompt_to"] is not None:
        noise = jnp.repeat(noise[:1], images, axis=0)
    if config["seed_to"] is not None or config["prompt_to"] is not None:
        keys = keys[np.zeros(images, int)]  # a path that is smooth in what is injected, too
    return keys[np.tile(np.arange(images), prompts)], jnp.tile(noise, (prompts, 1, 1, 1)), cond


def given_noise(config: dict[str, Any], model: TextToImage) -> Samples:
    """The latents of a file, in the layout of ours or of PyTorch's pipelines."""
    noise = np.load(config["latents"])[: config["images"]].astype(np.float32)
    h, w, c = model.shape
    if noise.shape[1:] == (c, h, w) != (h, w, c):
        noise = noise.transpose(0, 2, 3, 1)
    if noise.shape[1:] != (h, w, c):
        refuse([f"latents have shape {noise.shape}, but images need (n, {h}, {w}, {c})"])
    return jnp.asarray(noise)


def begin(config: dict[str, Any], model: TextToImage, noise: Samples, way: Route) -> Samples:
    """Where sampling starts: in noise, or near an image."""
    if config["init_image"] is None or config["strength"] == 1:
        return (way.spread * noise).astype(noise.dtype)
    image = read_image(config["init_image"], model.size)
    latents = model.encode(jnp.asarray(image)[None])
    return latents + (way.levels[0] * noise).astype(noise.dtype)


def step(
    moving: tqdm, model: TextToImage, folder: Path, part: slice, every: int | None,
    previews: dict[str, list], at: Step,
) -> None:  # fmt: skip
    """Move the bar, and every so many steps show what the images look like by now."""
    moving.update()
    if every and (at.i + 1) % every == 0:
        shown = to_pixels(model.decode(at.x - (at.sigma * at.eps).astype(at.x.dtype)))
        shown = shown[: part.stop - part.start]  # without what only fills the batch
        previews.setdefault(f"step {at.i + 1}", []).extend(shown)
        write_png(folder / f"preview_{part.start:03}_{at.i + 1:03}.png", tile(shown, len(shown)))


def started() -> None:
    sys.argv[1:] = completed(sys.argv[1:])
    main()


if __name__ == "__main__":
    sys.exit(run(lambda: _help.show(__doc__, "generate")) if _help.asked() else run(started))
