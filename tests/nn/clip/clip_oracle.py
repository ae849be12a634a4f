"""PyTorch CLIP models with every parameter drawn anew, and the same weights in ours."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.clip.model import CLIP, TextEncoder, VisionEncoder
from optdiff.nn.clip.weights import Names, names

TEXT = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 56,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 11,
    "eos_token_id": 63,
    "bos_token_id": 62,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 14,
    "patch_size": 4,
}
OURS = {
    transformers.CLIPTextModel: (CLIPTextConfig, TextEncoder),
    transformers.CLIPTextModelWithProjection: (CLIPTextConfig, TextEncoder),
    transformers.CLIPVisionModel: (CLIPVisionConfig, VisionEncoder),
    transformers.CLIPVisionModelWithProjection: (CLIPVisionConfig, VisionEncoder),
    transformers.CLIPModel: (CLIPConfig, CLIP),
}


def redraw(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter: matrices of unit gain, norms about one, biases far from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "embedding" in name:
                pass
            elif p.ndim > 1:
                noise *= p[0].numel() ** -0.5
            elif name.endswith("weight"):
                noise = 1 + 0.3 * noise
            else:
                noise *= 0.3
            p.copy_(noise)
    return model.eval()


def published(state: dict[str, torch.Tensor], kind: type) -> dict[str, torch.Tensor]:
    """A state dict under the names that published files use: a lone tower gets its prefix."""
    prefix = {
        transformers.CLIPTextModel: "text_model.",
        transformers.CLIPVisionModel: "vision_model.",
    }
    return {prefix.get(kind, "") + name: tensor for name, tensor in state.items()}


def arrays(state: dict[str, torch.Tensor], table: Names) -> dict[str, np.ndarray]:
    """Foreign tensors as our parameters, by our paths."""
    axes = {"conv": (2, 3, 1, 0), "linear": (1, 0), "same": None}
    turn = lambda x, layout: x if axes[layout] is None else x.transpose(axes[layout])  # noqa: E731
    return {ours: turn(state[name].numpy(), layout) for ours, (name, layout) in table.items()}


def pair(kind: type, fields: dict, seed: int = 0) -> tuple[torch.nn.Module, nnx.Module]:
    """PyTorch in float64 and ours in float32 with the same weights, each drawn in float32."""
    # sdpa: transformers' eager attention takes its softmax in float32 even in a float64 model.
    config = kind.config_class(**fields, attn_implementation="sdpa")
    theirs = redraw(kind(config), seed)
    our_config, build = OURS[kind]
    ours_config = our_config.from_dict(config.to_dict() | {"architectures": [kind.__name__]})
    ours = abstract(lambda rngs: build(ours_config, rngs=rngs))
    weights = arrays(published(theirs.state_dict(), kind), names(ours_config))
    state = nnx.to_flat_state(nnx.state(ours, nnx.Param))
    for path, leaf in state:
        leaf.set_value(jnp.asarray(weights[".".join(map(str, path))]))
    nnx.update(ours, nnx.from_flat_state(state))
    return theirs.double(), ours


def relative(ours, theirs) -> float:
    """Relative L2 error of ours against theirs."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


def sentences(b: int, n: int, *, vocab: int, eos: int, pad: int, seed: int = 1) -> np.ndarray:
    """Ids of b prompts of different lengths: start, words, eos, padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab - 2, (b, n))
    ids[:, 0] = vocab - 2
    for row, end in zip(ids, rng.integers(2, n, b), strict=True):
        row[end] = eos
        row[end + 1 :] = pad
    return ids.astype(np.int32)


def images(b: int, side: int, seed: int = 1) -> jax.Array:
    """Float32 noise, NHWC."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, side, side, 3)), jnp.float32)


def nchw(x: jax.Array) -> torch.Tensor:
    """The same for PyTorch, in float64."""
    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float64), -1, 1))
