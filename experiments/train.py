"""Train the networks of a text-to-image model, one stage at a time, by one loop.

python experiments/train.py -m stage=tokenizer,judge,clip,vae,unet
python experiments/train.py stage=unet steps=20
python experiments/train.py stage=vae rate=1e-3 optimizer=any optimizer._target_=optax.lion

Run the same command again to go on where a run was stopped, by whatever. What a stage has learned
lies in its folder: the finished network in `model`, curves in `curves.csv` and for TensorBoard.
"""

import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import jax
import optax
from _stages import earlier, found, pictures
from _sweep import ConfigError, build, check_targets, run
from omegaconf import DictConfig, OmegaConf

from optdiff import provenance
from optdiff.allocator import keep_freed_memory
from optdiff.images import tile, to_pixels, write_png
from optdiff.learning.loop import train
from optdiff.learning.precision import compute_dtype
from optdiff.learning.task import Task

STAGES = ("tokenizer", "judge", "clip", "vae", "unet")


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> None:
    if config.stage not in STAGES:
        raise ConfigError(f"stage is one of {', '.join(STAGES)}, not {config.stage!r}")
    wanted = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_targets({k: v for k, v in wanted.items() if k != "preset"}, "config")
    keep_freed_memory()
    if wanted["distributed"]:
        jax.distributed.initialize()
    learn(wanted, Path(wanted["folder"]) / wanted["stage"])


def learn(config: dict[str, Any], folder: Path) -> None:
    """Learn one stage and leave its finished network, scores and story in its folder."""
    began, stage = time.perf_counter(), config["stage"]
    folder.mkdir(parents=True, exist_ok=True)
    task = assemble(config)
    if isinstance(task, Task):
        state = train(
            task.loss,
            task.params,
            task.stream,
            optimizer(config),
            frozen=task.frozen,
            folder=folder,
            layout=build(config["layout"]),
            watch=None if config["watch_every"] is None else partial(watch, task, folder),
            label=stage,
            **{name: config[name] for name in LOOP if config[name] is not None},
        )
        learned = state.ema if config["ema_decay"] else state.params
        scores, save = task.scores(learned), partial(task.save, learned)
    else:  # a tokenizer, which no gradient leads to
        scores, save = {"vocabulary": len(task)}, task.save_pretrained
    if jax.process_index() == 0:
        publish(save, folder / "model", Path(config["folder"]), stage)
        note = {
            "command": " ".join(["python", *sys.argv]),
            "config": {k: v for k, v in config.items() if k != "preset"},
            "scores": scores,
            "seconds": round(time.perf_counter() - began, 1),
            **provenance.provenance(device()),
        }
        (folder / "run.json").write_text(json.dumps(note, indent=1) + "\n")
        print(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))


LOOP = (
    "steps", "seed", "ema_decay", "accumulate", "steps_per_call",
    "log_every", "save_every", "watch_every",
)  # fmt: skip
"""What the loop is told as it stands in the configuration."""


def assemble(config: dict[str, Any]) -> Any:
    """The stage's task, with what the stages before it have learned."""
    stage, root = config["stage"], Path(config["folder"])
    task = config["task"]
    if stage == "tokenizer":
        if "texts" not in config:
            raise ConfigError("this data has no `texts`, which a tokenizer learns from")
        return build(task)(build(config["texts"]))
    dtype = config["dtype"] if config["dtype"] != "auto" else compute_dtype().__name__
    rest = {"pictures": pictures} if stage == "unet" else {}
    return build(task)(
        data=build(config["data"]),
        held_out=build(config["held_out"]),
        seed=config["seed"],
        batch=config["batch"],
        host=jax.process_index(),
        hosts=jax.process_count(),
        dtype=dtype,
        **earlier(root, stage, task),
        **rest,
    )


def optimizer(config: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer asked for, the gradient's norm clipped first."""
    inner = build(config["optimizer"])
    return (
        inner
        if config["clip"] is None
        else optax.chain(optax.clip_by_global_norm(config["clip"]), inner)
    )


def watch(task: Task, folder: Path, learned: Any, step: int) -> dict[str, Any]:
    """Scores, and pictures side by side, which go to a file too."""
    seen = dict(task.scores(learned))
    if task.pictures is not None:
        seen["pictures"] = tile(to_pixels(task.pictures(learned)), 8)
        file = folder / "pictures" / f"{step:06}.png"
        file.parent.mkdir(exist_ok=True)
        if jax.process_index() == 0 and not file.exists():  # a resumed run shows a step again
            write_png(file, seen["pictures"])
    return seen


def publish(save: Any, model: Path, root: Path, stage: str) -> None:
    """Put a finished network in its place, and never half of it; a generator with its critics."""
    fresh, old = model.with_suffix(".new"), model.with_suffix(".old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    save(fresh)
    if stage == "unet":
        for part in ("clip", "judge"):
            shutil.copytree(found(root, part), fresh / part)
    if model.exists():
        os.replace(model, old)
    os.replace(fresh, model)
    shutil.rmtree(old, ignore_errors=True)


def device() -> str:
    """What is learned on, in words."""
    kind = f"{jax.devices()[0].platform} ({jax.devices()[0].device_kind})"
    return f"{jax.device_count()} x {kind}, {os.cpu_count()} processor cores"


if __name__ == "__main__":
    sys.exit(run(main))
