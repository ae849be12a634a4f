"""A PyTorch AutoencoderKL with every parameter drawn anew, and the same weights in ours."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.vae.model import VAE, VAEConfig
from optdiff.nn.vae.weights import Names, names

TINY = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
}
SD = {  # the autoencoder of Stable Diffusion 1.x, 2.x and, but for its scale, XL
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def redraw(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter: matrices of unit gain, norms about one, biases far from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                noise *= p[0].numel() ** -0.5
            elif name.endswith("weight"):
                noise = 1 + 0.3 * noise
            else:
                noise *= 0.3
            p.copy_(noise)
    return model.eval()


def arrays(state: dict[str, torch.Tensor], table: Names) -> dict[str, np.ndarray]:
    """Foreign tensors as our parameters, by our paths."""
    turn = {
        "conv": lambda x: x.transpose(2, 3, 1, 0),
        "linear": lambda x: x.T,
        "conv1x1": lambda x: x[:, :, 0, 0].T,
        "same": lambda x: x,
    }
    return {ours: turn[layout](state[name].numpy()) for ours, (name, layout) in table.items()}


def pair(fields: dict, seed: int = 0) -> tuple[AutoencoderKL, VAE]:
    """PyTorch in float64 and ours in float32 with the same weights, each drawn in float32."""
    theirs = redraw(AutoencoderKL(**fields), seed)
    ours = abstract(lambda rngs: VAE(VAEConfig(**fields), rngs=rngs))
    weights = arrays(theirs.state_dict(), names(ours.config))
    state = nnx.to_flat_state(nnx.state(ours, nnx.Param))
    for path, leaf in state:
        leaf.set_value(jnp.asarray(weights[".".join(map(str, path))]))
    nnx.update(ours, nnx.from_flat_state(state))
    return theirs.double(), ours


def relative(ours, theirs) -> float:
    """Relative L2 error of ours, NHWC, against theirs, NCHW."""
    theirs = theirs.detach().numpy()
    theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


def images(*shape: int, seed: int = 1) -> jax.Array:
    """Float32 noise, NHWC."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def nchw(x: jax.Array) -> torch.Tensor:
    """The same for PyTorch, in float64."""
    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1))
