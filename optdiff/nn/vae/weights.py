"""The names of the autoencoder's tensors: in diffusers, in older diffusers, in latent-diffusion.

Foreign names live here and nowhere else. Reading and writing files is another file's work.
"""

import re

from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE

Names = dict[str, tuple[str, str]]
"""Our parameter's path -> (foreign tensor name, layout).

Layouts say what is there and here: "conv" OIHW and HWIO, "linear" (out, in) and (in, out), "same"
the same, "conv1x1" (out, in, 1, 1) and (in, out).
"""

# Ours -> diffusers', in this order.
_DIFFUSERS = [
    (r"\bdown\.(\d+)\.resize\b", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d+)\.resize\b", r"up_blocks.\1.upsamplers.0"),
    (r"\bdown\b", "down_blocks"),
    (r"\bup\b", "up_blocks"),
    (r"\bmid\b", "mid_block"),
    (r"\bnorm_out\b", "conv_norm_out"),
    (r"(attentions\.\d+)\.norm\b", r"\1.group_norm"),
    (r"(attentions\.\d+)\.([qkv])\b", r"\1.to_\2"),
    (r"(attentions\.\d+)\.out\b", r"\1.to_out.0"),
    (r"\b(kernel|scale)$", "weight"),
]
# Ours -> latent-diffusion's, in this order; its decoder counts levels from the other end.
_ORIGINAL = [
    (r"\bdown\.(\d+)\.resize\b", r"down.\1.downsample"),
    (r"\bup\.(\d+)\.resize\b", r"up.\1.upsample"),
    (r"\bmid\.resnets\.0\b", "mid.block_1"),
    (r"\bmid\.resnets\.1\b", "mid.block_2"),
    (r"\bmid\.attentions\.0\b", "mid.attn_1"),
    (r"\bresnets\b", "block"),
    (r"\battentions\b", "attn"),
    (r"(attn\w*(?:\.\d+)?)\.out\b", r"\1.proj_out"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\b(kernel|scale)$", "weight"),
]
# What diffusers called the attention's projections before 0.18.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def names(config: VAEConfig) -> Names:
    """The diffusers name and the layout of every parameter of `VAE(config)`.

    >>> names(VAEConfig())["decoder.mid.attentions.0.q.kernel"]
    ('decoder.mid_block.attentions.0.to_q.weight', 'linear')
    """
    layouts = _layouts(config)
    return {path: (_rename(path, _DIFFUSERS), layout) for path, layout in layouts.items()}


def original_names(config: VAEConfig) -> Names:
    """The same for the single files of CompVis latent-diffusion, less `first_stage_model.`.

    >>> original_names(VAEConfig())["decoder.mid.attentions.0.q.kernel"]
    ('decoder.mid.attn_1.q.weight', 'conv1x1')
    """
    top = len(config.block_out_channels) - 1

    def foreign(path: str) -> str:
        path = re.sub(r"\bup\.(\d+)", lambda m: f"up.{top - int(m[1])}", path)
        return _rename(path, _ORIGINAL)

    layouts = _layouts(config)
    return {
        path: (foreign(path), "conv1x1" if layout == "linear" else layout)
        for path, layout in layouts.items()
    }


def canonical(name: str) -> str:
    """A tensor's name as current diffusers writes it, from any spelling in published files.

    Returns:
      The name, unchanged if it is not an old spelling.

    >>> canonical("encoder.mid_block.attentions.0.proj_attn.weight")
    'encoder.mid_block.attentions.0.to_out.0.weight'
    """
    old = "|".join(_OLD)
    return re.sub(rf"(attentions\.\d+)\.({old})\b", lambda m: f"{m[1]}.{_OLD[m[2]]}", name)


def _layouts(config: VAEConfig) -> dict[str, str]:
    model = abstract(lambda rngs: VAE(config, rngs=rngs))
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    layout = {4: "conv", 2: "linear", 1: "same"}
    return {".".join(map(str, path)): layout[leaf.get_value().ndim] for path, leaf in params}


def _rename(path: str, rules: list[tuple[str, str]]) -> str:
    for ours, theirs in rules:
        path = re.sub(ours, theirs, path)
    return path
