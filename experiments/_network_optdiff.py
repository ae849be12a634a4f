"""optdiff's side of the networks' benchmark: parts with random weights, and their FLOP."""

import math
import os
import platform
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _side import Work, serve
from flax import nnx
from jax.extend.core import jaxprs_in_params

from optdiff.allocator import give_back_after_compiling
from optdiff.denoisers import Guided, eps_scaling
from optdiff.grids import trailing
from optdiff.nn.abstract import abstract
from optdiff.nn.families import FAMILIES
from optdiff.nn.network import Network, network
from optdiff.noise import scaled_linear
from optdiff.problems.text_to_image import TextToImage
from optdiff.sample import sample_keys, sample_scan
from optdiff.samplers import ddim


def prepare(job: dict[str, Any]) -> Work:
    """The part that the job asks for, compiled when it is first called."""
    give_back_after_compiling()
    device = jax.devices()[0]
    accelerated = device.platform != "cpu"
    dtype = jnp.dtype(job["dtype"] or ("bfloat16" if accelerated else "float32"))
    function, arguments = PARTS[job["part"]](job, job["geometry"], dtype)
    program = jax.jit(function)
    machine = f"{dtype}, {device.device_kind if accelerated else f'{os.cpu_count()} cores'}"
    machine += f", jax {jax.__version__}, Python {platform.python_version()}"
    return Work(
        lambda: jax.block_until_ready(program(*arguments)),
        partial(matmul, dtype, 8192 if accelerated else 4096),
        lambda: {"flops": flops(program.trace(*arguments).jaxpr.jaxpr), "machine": machine},
        (lambda: device.memory_stats()["peak_bytes_in_use"]) if accelerated else None,
    )


def clip(job, geometry, dtype):
    nets = [fresh("CLIPTextModelWithProjection", text, dtype) for text in geometry["text"]]
    ids = jnp.ones((job["batch"], 77), jnp.int32)

    def read(nets, ids):
        outputs = [net.module()(ids) for net in nets]
        return [
            (each.last_hidden_state, each.hidden_states[-2], each.projected) for each in outputs
        ]

    return read, (nets, ids)


def unet(job, geometry, dtype, passes=1):
    x, t, cond = inputs(passes * job["batch"], geometry, dtype)

    def predict(net, x, t, cond):
        return net.module()(x, t, cond["context"], added=cond.get("added"))

    return predict, (fresh("UNet2DConditionModel", geometry["unet"], dtype), x, t, cond)


def vae(job, geometry, dtype):
    x, _, _ = inputs(job["batch"], geometry, dtype)
    net = fresh("AutoencoderKL", geometry["vae"], dtype)
    return lambda net, x: net.module().decode(x), (net, x)


def image(job, geometry, dtype):
    """From encoded prompts to pixels: guided DDIM steps, then the decoder."""
    x, _, cond = inputs(job["batch"], geometry, dtype)
    schedule = scaled_linear()
    nets = (
        fresh("UNet2DConditionModel", geometry["unet"], dtype),
        fresh("AutoencoderKL", geometry["vae"], dtype),
    )
    problem = TextToImage(*nets, None, schedule, eps_scaling, x.shape[1:])
    guided = Guided(problem, 7.5, jax.tree.map(lambda leaf: leaf[0], cond))
    levels, keys, sampler = trailing(schedule, job["steps"]), sample_keys(0, len(x)), ddim()

    def make(guided, keys, cond, x):
        x0, _ = sample_scan(guided, sampler, levels, keys, cond=cond, x=x)
        return guided.decode(x0)

    return make, (guided, keys, cond, problem.from_noise(x, levels[0]))


PARTS = {"clip": clip, "unet": unet, "guided": partial(unet, passes=2), "vae": vae, "image": image}


def inputs(batch: int, geometry: dict[str, Any], dtype: Any):
    """Latents, timesteps and condition for so many samples."""
    rng, config = np.random.default_rng(0), geometry["unet"]

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape)), dtype)

    cond = {"context": normal(77, config["cross_attention_dim"])}
    if config.get("addition_embed_type"):
        dim, ids = geometry["text"][-1]["projection_dim"], jnp.full((batch, 6), 1024.0)
        cond["added"] = {"text_embeds": normal(dim), "time_ids": ids}
    return normal(*geometry["latents"], 4), jnp.full(batch, 500.0), cond


def fresh(name: str, raw: dict[str, Any], dtype: Any) -> Network:
    """A network of this class and geometry with random weights."""
    family, rng = FAMILIES[name], np.random.default_rng(0)
    raw = raw | {"architectures": [name]} if family.library == "transformers" else raw
    module = abstract(lambda rngs: family.build(family.config(raw), dtype, rngs))
    graphdef, state = nnx.split(module)
    return network(nnx.merge(graphdef, jax.tree.map(partial(draw, rng), state)))


def draw(rng: np.random.Generator, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Weights that keep signals finite."""
    if len(like.shape) < 2:
        return jnp.ones(like.shape, like.dtype)
    values = rng.standard_normal(like.shape, np.float32) / math.prod(like.shape[:-1]) ** 0.5
    return jnp.asarray(values, like.dtype)


def matmul(dtype: Any, n: int) -> float:
    """FLOP/s of an n by n product, the best of a few."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32), dtype)
    product, times = jax.jit(jnp.matmul), []
    for _ in range(4):
        began = perf_counter()
        product(a, a).block_until_ready()
        times.append(perf_counter() - began)
    return 2 * n**3 / min(times)


def flops(jaxpr) -> float:
    """Multiplications and additions of the products and convolutions in a program, as a plain
    implementation makes them: where an operation has a way with fewer, the plain one counts."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [flops(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(eqn.params)]
        match eqn.primitive.name:
            case "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                sums = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * sums * eqn.outvars[0].aval.size
            case "conv_general_dilated":
                kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
                total += 2 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[spec[0]]
            case "cond":
                total += max(inner)
            case "scan":
                total += eqn.params["length"] * sum(inner)
            case _:
                total += sum(inner)
    return total


if __name__ == "__main__":
    serve(prepare)
