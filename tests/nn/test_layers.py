"""The shared layers against PyTorch's and diffusers' in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.activations import get_activation
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from flax import nnx

from optdiff.nn import layers


def relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def in_torch(x):
    return torch.tensor(np.asarray(x)).double()


def nchw(x):
    return in_torch(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def redrawn(module, seed=0):
    """The module with every parameter drawn anew, zeros and ones too."""
    graphdef, state = nnx.split(module)
    leaves, treedef = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(rng.normal(size=leaf.shape) / 5, leaf.dtype) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))


def give(theirs, ours):
    """Copy our parameters into the PyTorch module of the same attribute names."""
    state = {}
    for path, leaf in nnx.to_flat_state(nnx.state(ours)):
        tensor = in_torch(leaf[...])
        name = ".".join(map(str, path)).replace("kernel", "weight").replace("scale", "weight")
        turn = {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim, (0,))
        state[name] = tensor.permute(turn)
    theirs = theirs.double().eval()
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (1, 9, 8), (3, 1, 1, 16)])
@pytest.mark.parametrize("offset", [0, 300])
def test_group_norm(shape, offset):
    """A large mean costs the digits that float32 does not hold, and no more."""
    x = draw(*shape) + offset
    scale, bias = draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    ours = layers.group_norm(x, scale, bias, groups=4, eps=1e-3)
    theirs = torch.nn.functional.group_norm(
        in_torch(x).movedim(-1, 1), 4, in_torch(scale), in_torch(bias), 1e-3
    ).movedim(1, -1)  # fmt: skip
    assert relative(ours, theirs) < (5e-7 if offset == 0 else 1e-4)


def test_group_norm_where_channels_of_one_group_differ():
    """Means that differ within a group enter its variance."""
    x = draw(2, 6, 6, 8) + 100 * jnp.arange(8.0, dtype=jnp.float32)[None, None, None]
    ours = layers.group_norm(x, jnp.ones(8), jnp.zeros(8), groups=2, eps=1e-5)
    theirs = torch.nn.functional.group_norm(nchw(x), 2, eps=1e-5)
    assert relative(ours, nhwc(theirs)) < 5e-7


def test_group_norm_takes_its_moments_in_float32():
    x = (draw(1, 32, 32, 8) + 10).astype(jnp.bfloat16)
    ours = layers.group_norm(x, jnp.ones(8), jnp.zeros(8), groups=2, eps=1e-5)
    assert ours.dtype == jnp.bfloat16
    theirs = torch.nn.functional.group_norm(nchw(x.astype(jnp.float32)), 2, eps=1e-5)
    assert relative(ours, nhwc(theirs)) < 3e-3  # the rounding of the output


def test_group_norm_says_which_channels_do_not_split():
    with pytest.raises(ValueError, match=r"20 channels do not split into 8 groups"):
        layers.GroupNorm(20, groups=8, eps=1e-5)


@pytest.mark.parametrize("height, width", [(8, 6), (7, 9)])
@pytest.mark.parametrize("padding", [0, 1])
def test_downsample(padding, height, width):
    ours = redrawn(layers.Downsample(6, padding=padding, rngs=nnx.Rngs(0)))
    theirs = give(Downsample2D(6, use_conv=True, padding=padding, name="op"), ours)
    x = draw(2, height, width, 6)
    assert relative(ours(x), nhwc(theirs(nchw(x)))) < 5e-7


@pytest.mark.parametrize("size", [None, (10, 8), (9, 7), (11, 8)])
def test_upsample(size):
    ours = redrawn(layers.Upsample(6, rngs=nnx.Rngs(0)))
    theirs = give(Upsample2D(6, use_conv=True), ours)
    x = draw(2, 5, 4, 6)
    assert relative(ours(x, size), nhwc(theirs(nchw(x), size))) < 5e-7


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (6, 10), (7, 9), (13, 11)])
def test_nearest(size):
    x = draw(1, 4, 5, 2)
    theirs = torch.nn.functional.interpolate(nchw(x), size=size, mode="nearest")
    np.testing.assert_array_equal(layers.nearest(x, size), nhwc(theirs))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(out_channels=16),
        dict(temb_channels=12),
        dict(temb_channels=12, scale_shift=True, out_channels=16),
        dict(output_scale=2.0, act="gelu"),
    ],
    ids=str,
)
def test_resnet_block(options):
    out, temb = options.get("out_channels", 8), options.get("temb_channels")
    shift, scale = options.get("scale_shift", False), options.get("output_scale", 1.0)
    act = options.get("act", "silu")
    ours = redrawn(
        layers.ResnetBlock(
            8, out, groups=4, eps=1e-3, temb_channels=temb, scale_shift=shift,
            output_scale=scale, act=layers.ACTIVATIONS[act], rngs=nnx.Rngs(0),
        )
    )  # fmt: skip
    theirs = give(
        ResnetBlock2D(
            in_channels=8, out_channels=out, groups=4, eps=1e-3, temb_channels=temb,
            time_embedding_norm="scale_shift" if shift else "default",
            output_scale_factor=scale, non_linearity=act,
        ),
        ours,
    )  # fmt: skip
    x, t = draw(2, 6, 5, 8), None if temb is None else draw(2, temb, seed=3)
    expected = theirs(nchw(x), None if t is None else in_torch(t))
    assert relative(nnx.jit(ours)(x, t), nhwc(expected)) < 1e-6


@pytest.mark.parametrize("dim, flip, shift", [(320, True, 0), (32, False, 1), (7, True, 0.5)])
def test_timestep_embedding(dim, flip, shift):
    t = jnp.array([0, 0.5, 1, 17, 500.25, 999], jnp.float32)
    ours = layers.timestep_embedding(t, dim, flip_sin_to_cos=flip, freq_shift=shift)
    theirs = get_timestep_embedding(
        torch.tensor(np.asarray(t)), dim, flip_sin_to_cos=flip, downscale_freq_shift=shift
    )
    assert ours.dtype == jnp.float32
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations(name):
    x = np.linspace(-30, 30, 601)
    theirs = get_activation(name)(torch.tensor(x))
    np.testing.assert_allclose(layers.ACTIVATIONS[name](jnp.asarray(x)), theirs, atol=1e-12)


def test_dtype_is_computed_in_and_param_dtype_is_stored():
    layer = layers.Conv(8, 16, 3, dtype=jnp.bfloat16, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("float64")}
    assert layer(draw(1, 4, 4, 8)).dtype == jnp.bfloat16
