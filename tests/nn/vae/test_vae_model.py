"""The autoencoder against PyTorch, whole and block by block, and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from vae_oracle import SD, TINY, images, nchw, pair, relative

from optdiff.nn.abstract import abstract
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE, PixelAttention, Posterior

FAMILIES = {
    "plain": TINY,
    "attention": TINY
    | {
        "down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        "layers_per_block": 2,
        "act_fn": "gelu",
    },
    "sd3": TINY
    | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 6,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5305,
    },
    "playground": TINY
    | {"latents_mean": (-1.6, 1.1, 3.0, -3.2), "latents_std": (8.5, 5.9, 6.6, 4.3)},
    "no attention": TINY | {"mid_block_add_attention": False, "in_channels": 1, "out_channels": 2},
}


def forward(vae, x, latents):
    return vae.encode(x), vae.decode(latents)


# Tiny networks: compiling takes all the time, and takes half as long without LLVM's optimizer.
QUICK = {"xla_backend_optimization_level": 0}
both_ways = jax.jit(forward, compiler_options=QUICK)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_encode_and_decode_match_torch_at_odd_sizes(fields):
    theirs, ours = pair(fields)
    shift, scale = ours.config.shift_factor or 0, ours.config.scaling_factor
    if ours.config.latents_mean:  # as diffusers' SDXL pipeline decodes
        mean, std = theirs.config.latents_mean, theirs.config.latents_std
        shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        scale = ours.config.scaling_factor / scale
    x, latents = (
        images(2, 17, 22, ours.config.in_channels),
        images(2, 5, 3, ours.config.latent_channels),
    )
    (mean, std), decoded = both_ways(ours, x, latents)
    posterior = theirs.encode(nchw(x)).latent_dist
    assert relative(mean, (posterior.mean - shift) * scale) < 2e-5
    assert relative(std, posterior.std * scale) < 2e-5
    assert relative(decoded, theirs.decode(nchw(latents) / scale + shift).sample) < 2e-5


BLOCKS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.resnets.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down.0.resize": "encoder.down_blocks.0.downsamplers.0",
    "encoder.down.1": "encoder.down_blocks.1",
    "encoder.mid.resnets.0": "encoder.mid_block.resnets.0",
    "encoder.mid.attentions.0": "encoder.mid_block.attentions.0",
    "encoder.mid": "encoder.mid_block",
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.mid.attentions.0": "decoder.mid_block.attentions.0",
    "decoder.up.0.resnets.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.0.resize": "decoder.up_blocks.0.upsamplers.0",
    "decoder.up.1": "decoder.up_blocks.1",
    "decoder.conv_out": "decoder.conv_out",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}


@pytest.fixture(scope="module")
def blocks():
    """What goes into and comes out of every PyTorch module, and our network."""
    theirs, ours = pair(TINY)
    seen = {}
    for name, module in theirs.named_modules():
        module.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i[0], o)}))
    with torch.no_grad():
        theirs(nchw(images(1, 9, 8, 3)))
    return seen, ours


@pytest.mark.parametrize("path", BLOCKS)
def test_each_block_matches_torch_on_the_same_input(blocks, path):
    seen, module = blocks
    before, after = seen[BLOCKS[path]]
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    x = jnp.asarray(np.moveaxis(before.numpy(), 1, -1), jnp.float32)
    assert (
        relative(jax.jit(lambda module, x: module(x), compiler_options=QUICK)(module, x), after)
        < 5e-6
    )


def test_posterior_samples_have_its_moments_and_do_not_depend_on_the_batch():
    mean, std = images(3, 40, 50, 4), 0.1 + abs(images(3, 40, 50, 4, seed=2))
    keys = jax.random.split(jax.random.key(0), 3)
    samples = Posterior(mean, std).sample(keys)
    noise = (np.asarray(samples) - np.asarray(mean)) / np.asarray(std)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)
    alone = Posterior(mean[1:2], std[1:2]).sample(keys[1:2])
    np.testing.assert_array_equal(alone[0], samples[1])
    assert Posterior(mean, std).mode() is mean


def test_parameter_counts_at_full_size():
    vae = abstract(lambda rngs: VAE(VAEConfig(**SD), rngs=rngs))
    count = lambda module: sum(np.prod(x.shape) for x in jax.tree.leaves(nnx.state(module)))  # noqa: E731
    assert count(vae) == 83_653_863
    assert count(vae.decoder) == 49_490_179


def cast(model, dtype):
    """The same weights in another type."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))


def test_bfloat16_stays_near_float32_and_keeps_types():
    _, ours = pair(TINY)
    x, z = images(2, 17, 22, 3), images(2, 5, 3, 4)
    bfloat16 = cast(ours, jnp.bfloat16)
    full, half = both_ways(ours, x, z), both_ways(bfloat16, x, z)
    # Computed in what the weights are stored in, returned in the type of what was given.
    assert jax.eval_shape(VAE.moments, bfloat16, x).dtype == jnp.bfloat16
    assert half[0].mean.dtype == half[1].dtype == jnp.float32
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b)


@pytest.mark.parametrize("upcast", [True, False])
def test_float16_weights_compute_in_float32_only_under_force_upcast(upcast):
    # conv_in makes numbers that float16 cannot hold; the norms behind it bring them back.
    one = {f"{way}_block_types": TINY[f"{way}_block_types"][:1] for way in ("down", "up")}
    _, ours = pair(TINY | one | {"block_out_channels": (8,), "force_upcast": upcast})
    ours.decoder.conv_in.kernel.set_value(ours.decoder.conv_in.kernel[...] * 6e4)
    half = cast(ours, jnp.float16)
    decode = jax.jit(lambda vae, z: vae.decode(z), compiler_options=QUICK)
    z = images(1, 4, 4, 4)
    if upcast:
        same = decode(cast(half, jnp.float32), z)
        np.testing.assert_allclose(decode(half, z), same, rtol=1e-4, atol=1e-4)
    else:
        assert not jnp.isfinite(decode(half, z)).all()


def test_lowers_for_tpu_and_cuda():
    vae = abstract(lambda rngs: VAE(VAEConfig(**TINY), param_dtype=jnp.bfloat16, rngs=rngs))
    graph, state = nnx.split(vae)

    def round_trip(state, x, keys):
        vae = nnx.merge(graph, state)
        return vae.decode(vae.encode(x).sample(keys))

    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    exported = jax.export.export(jax.jit(round_trip), platforms=["tpu", "cuda"])(state, x, keys)
    assert exported.out_avals[0].shape == x.shape


def test_the_wide_head_never_materialises_all_logits():
    # 64x64 latents: 4,096 x 4,096 logits of one float32 head alone would be 64 MB an image.
    block = PixelAttention(512, groups=32, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((2, 64, 64, 512), jnp.float32)
    compiled = jax.jit(lambda block, x: block(x)).lower(block, x).compile()
    image = 2 * 64 * 64 * 512 * 4  # 16 MB of features
    assert compiled.memory_analysis().temp_size_in_bytes < 7 * image


@pytest.mark.slow
@torch.no_grad()
def test_full_size_decoder_and_encoder_match_torch():
    theirs, ours = pair(SD)
    x, latents = images(1, 96, 128, 3), images(1, 16, 24, 4)
    run = jax.jit(forward)
    (mean, std), decoded = run(ours, x, latents)
    posterior, scale = theirs.encode(nchw(x)).latent_dist, ours.config.scaling_factor
    assert relative(mean, posterior.mean * scale) < 2e-5
    assert relative(std, posterior.std * scale) < 2e-5
    expected = theirs.decode(nchw(latents) / scale).sample
    assert relative(decoded, expected) < 2e-5
    half = run(cast(ours, jnp.bfloat16), x, latents)
    assert relative(half[0].mean, posterior.mean * scale) < 2e-2
    assert relative(half[1], expected) < 2e-2
