"""Train the networks of a text-to-image model, one stage at a time, by one loop.

python experiments/train.py -m stage=tokenizer,judge,clip,vae,unet
python experiments/train.py stage=unet steps=20 folder=outputs/short
python experiments/train.py stage=vae folder=outputs/adamw optimizer=adamw rate=1e-3

Run the same command again to go on where a run was stopped, by whatever. What a stage has learned
lies in its folder: the finished network in `model`, curves in `curves.csv` and for TensorBoard.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import _help
import hydra
import jax
import optax
from _build import build, check_targets, folder_path
from _device import device
from _errors import ConfigError, WriteError
from _note import begin, write
from _stages import SHIPPED, STAGES, critics, earlier, parts, pictures
from _sweep import RESUMES, end_with_parent, run
from jax.experimental import multihost_utils
from omegaconf import DictConfig, OmegaConf

from optdiff.allocator import keep_freed_memory
from optdiff.images import tile, to_pixels, write_png
from optdiff.learning.claim import claimed
from optdiff.learning.interruption import ResumeError
from optdiff.learning.layouts import whole
from optdiff.learning.loop import train
from optdiff.learning.precision import compute_dtype
from optdiff.learning.task import Task
from optdiff.nn.checkpoint import Pipeline


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    end_with_parent()
    if config.stage not in STAGES:
        raise ConfigError(f"stage is one of {', '.join(STAGES)}, not {config.stage!r}")
    wanted = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_targets({k: v for k, v in wanted.items() if k != "preset"}, "config")
    check_numbers(wanted)
    keep_freed_memory()
    if wanted["distributed"] is not None and not jax.distributed.is_initialized():
        jax.distributed.initialize(**wanted["distributed"])
    try:
        learn(wanted, Path(folder_path("folder", wanted["folder"])) / wanted["stage"])
    except OSError as error:
        raise WriteError(f"{wanted['stage']}: {error}") from error
    except (ResumeError, FloatingPointError) as error:  # which say what to do
        raise ConfigError(f"{wanted['stage']}: {error}") from error
    if jax.process_count() > 1:  # the next stage reads what the first process writes
        multihost_utils.sync_global_devices(wanted["stage"])


def learn(config: dict[str, Any], folder: Path) -> None:
    """Learn one stage and leave its finished network, scores and story in its folder."""
    start, stage = time.perf_counter(), config["stage"]
    used, beside = parts(config), critics(config)
    note = begin(folder, config | {"dtype": dtype(config)}, used, device())
    if note is None:
        print(f"{stage}: finished before, in {folder}")
        return
    with claimed(folder / ".run.lock"):
        begun = partial(write, folder, note) if jax.process_index() == 0 else lambda: None
        if stage == "tokenizer":  # which is learned at once; the loop says when others begin
            begun()
        for part, path in (used | beside).items():
            if path.is_relative_to(SHIPPED):
                print(f"{stage}: takes the {part} that comes with optdiff")
        scores, save = run_task(assemble(config, used), config, folder, begun)
        if jax.process_index() == 0:
            publish(save, folder / "model", beside)
            seconds = round(time.perf_counter() - start, 1)
            write(folder, note | {"scores": scores, "seconds": seconds})
            print(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))


def run_task(
    task: Any, config: dict[str, Any], folder: Path, begun: Callable[[], None]
) -> tuple[dict[str, float], Callable[[Path], None]]:
    """Scores of what a task has learned at the end, and what saves that."""
    if not isinstance(task, Task):  # a tokenizer, which no gradient leads to
        return {"vocabulary": len(task)}, task.save_pretrained
    state = train(
        task.loss,
        task.params,
        task.stream,
        optimizer(config),
        frozen=task.frozen,
        folder=folder,
        layout=build(config["layout"]),
        begun=begun,
        watch=None if config["watch_every"] is None else partial(watch, task, folder),
        label=config["stage"],
        **{name: config[name] for name in LOOP if config[name] is not None},  # watch_every
    )
    learned = whole(state.ema)
    return task.scores(learned), partial(task.save, learned)


LOOP = (
    "steps", "seed", "ema_decay", "accumulate", "steps_per_call",
    "log_every", "save_every", "watch_every",
)  # fmt: skip
"""Entries of the configuration that are arguments of the loop, by the same names."""


def check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse counts that nothing can be learned by.

    Raises:
      ConfigError: naming all of them.
    """
    least = {name: 1 for name in ("batch", *LOOP) if name not in ("seed", "ema_decay")}
    least |= {"seed": 0, "steps": int(config["stage"] != "tokenizer")}
    wrong = [
        f"{name} = {config[name]!r} must be a whole number of at least {low}"
        for name, low in least.items()
        if not (type(config[name]) is int and config[name] >= low)
        and not (name == "watch_every" and config[name] is None)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def assemble(config: dict[str, Any], used: Mapping[str, Path]) -> Any:
    """The stage's task, with the networks that it starts from."""
    stage, task = config["stage"], build(config["task"])
    if stage == "tokenizer" and "texts" not in config:
        raise ConfigError("this data has no `texts`, which a tokenizer learns from")
    try:
        if stage == "tokenizer":
            return task(build(config["texts"]))
        rest = {"pictures": previews(config)} if stage == "unet" else {}
        return task(
            data=partial(
                build(config["data"]),
                seed=config["seed"],
                batch=config["batch"],
                host=jax.process_index(),
                hosts=jax.process_count(),
            ),
            held_out=partial(build(config["held_out"]), seed=config["seed"]),
            seed=config["seed"],
            dtype=dtype(config),
            **earlier(used),
            **rest,
        )
    except (OSError, ValueError) as error:  # no such data, or choices that contradict each other
        raise ConfigError(f"{stage}: {error}") from error


def dtype(config: Mapping[str, Any]) -> str:
    """The name of what networks compute in."""
    return config["dtype"] if config["dtype"] != "auto" else compute_dtype().__name__


def previews(config: Mapping[str, Any]) -> Callable[[Pipeline], Any] | None:
    """What makes pictures of the data's prompts, or else of its first captions, if any."""
    prompts = config.get("prompts")
    if prompts is None and "texts" in config and config["watch_every"] is not None:
        prompts = list(islice(build(config["texts"]), 8))
    return partial(pictures, prompts=prompts) if prompts else None


def optimizer(config: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer asked for, the gradient's norm clipped first."""
    inner, norm = build(config["optimizer"]), config["clip"]
    return inner if norm is None else optax.chain(optax.clip_by_global_norm(norm), inner)


def watch(task: Task, folder: Path, learned: Any, step: int) -> dict[str, Any]:
    """Scores, and pictures side by side, which go to a file too."""
    values = dict(task.scores(learned))
    if task.pictures is not None:
        values["pictures"] = tile(to_pixels(task.pictures(learned)), 8)
        file = folder / "pictures" / f"{step:06}.png"
        file.parent.mkdir(exist_ok=True)
        if jax.process_index() == 0:
            file.unlink(missing_ok=True)  # a resumed run shows a step again
            write_png(file, values["pictures"])
    return values


def publish(save: Any, model: Path, beside: Mapping[str, Path]) -> None:
    """Put a finished network in its place, others beside it, and never half of it."""
    fresh, old = model.with_suffix(".new"), model.with_suffix(".old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    save(fresh)
    for part, path in beside.items():
        shutil.copytree(path, fresh / part)
    if model.exists():
        os.replace(model, old)
    os.replace(fresh, model)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    asked = _help.asked()
    sys.exit(run(lambda: _help.show(__doc__, "train")) if asked else run(main, advice=RESUMES))
