"""optdiff's side of the training benchmark: the step that `train.py` takes, and its pieces."""

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _side import Work, medians, serve
from _stages import parts
from train import assemble, dtype, optimizer

from optdiff.allocator import keep_freed_memory
from optdiff.keys import seed_key
from optdiff.learning.layouts import all_devices, everywhere, over_devices, replicated, shardings
from optdiff.learning.step import initial_state, step_function
from optdiff.learning.task import Task
from optdiff.learning.unet import Teachers
from optdiff.nn.checkpoint import save_module
from optdiff.types import Batch


def prepare(job: dict[str, Any]) -> Work:
    """The step of the stage that the job asks for; its networks and a batch go to the folder."""
    keep_freed_memory()
    config, device = job["config"], jax.devices()[0]
    task = assemble(config, parts(config))
    batch, _ = task.stream.read(task.stream.start)
    hand_over(Path(job["folder"]), config["stage"], task, batch)
    pieces = {name: waiting(piece) for name, piece in programs(config, task, batch).items()}
    versions = f"jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}"
    accelerated = device.platform != "cpu"
    return Work(
        pieces["step"],
        facts=lambda: {
            "pieces": medians(pieces, job["repeats"]),
            "batch": config["batch"],
            "machine": ", ".join([dtype(config), *[device.device_kind] * accelerated]),
            "versions": f"Python {platform.python_version()}, {versions}",
        },
        peak=(lambda: device.memory_stats()["peak_bytes_in_use"]) if accelerated else None,
    )


def hand_over(folder: Path, stage: str, task: Task, batch: Batch) -> None:
    """Write the networks, as diffusers and transformers read them, and the batch."""
    nets, arrays = {stage: task.params}, dict(batch)
    if isinstance(task.frozen, Teachers):
        nets |= {"vae": task.frozen.vae, "text_encoder": task.frozen.text}
        arrays["blank"] = task.frozen.blank
    for name, net in nets.items():
        save_module(folder / name, net.module())
    np.savez(folder / "batch.npz", **arrays)


def programs(config: dict[str, Any], task: Task, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The step, last, and before it the pieces that say where its time goes."""
    mesh, update, key = all_devices(), optimizer(config), seed_key(config["seed"])
    good, frozen, params = everywhere(mesh, (jnp.array(True), task.frozen, task.params))
    batches = over_devices(mesh, {k: np.asarray(v)[None, None] for k, v in batch.items()})
    batch = {k: v[0, 0] for k, v in batches.items()}

    def stepping(loss):
        state = initial_state(task.params, update, config["seed"], mesh, replicated)
        places = shardings(replicated, mesh, state)
        advance = step_function(loss, update, config["ema_decay"], mesh, places)

        def step():
            nonlocal state
            state, _, metrics = advance(state, good, frozen, batches)
            return metrics

        return step

    gradient = jax.value_and_grad(task.loss, has_aux=True)
    pieces = {
        "loss": partial(jax.jit(task.loss), params, frozen, batch, key),
        "gradient": partial(jax.jit(gradient), params, frozen, batch, key),
        "update": stepping(half_square),
        "step": stepping(task.loss),
    }
    if isinstance(task.frozen, Teachers):
        pieces = {"teachers": partial(jax.jit(teach), frozen, batch), **pieces}
    return pieces


def half_square(params, *unused):
    """A loss whose gradient is the parameters themselves: its step is an update, and no more."""
    return optax.tree.norm(params, squared=True) / 2.0, {}


def teach(teachers: Teachers, batch: Batch):
    """What the frozen networks tell a denoiser: latents and context."""
    latents = teachers.vae.module().encode(2.0 * batch["images"] - 1.0).mode()
    return latents, teachers.text.module()(batch["ids"]).last_hidden_state


def waiting(piece: Callable[[], Any]) -> Callable[[], Any]:
    """The same call, which returns when its results are there."""
    return lambda: jax.block_until_ready(piece())


if __name__ == "__main__":
    serve(prepare)
