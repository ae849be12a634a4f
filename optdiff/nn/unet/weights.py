"""What diffusers calls the weights of the UNet, and how it lays them out.

This is the only file of the UNet that knows foreign names; reading and writing files is the
checkpoint's business.
"""

import re
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet

Layout = Literal["conv", "linear", "same"]
"""How a foreign tensor becomes ours: OIHW to HWIO, transposed, or as it is."""

RENAMED = (
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"(attentions\.\d+)\.blocks\.", r"\1.transformer_blocks."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
    (r"\.(kernel|scale|embedding)$", ".weight"),
)


def names(config: UNetConfig) -> dict[str, tuple[str, Layout]]:
    """Our parameters' paths, each with the name and the layout of its diffusers tensor.

    Args:
      config: the geometry.

    Returns:
      `{"conv_in.kernel": ("conv_in.weight", "conv"), ...}`; every parameter once, on both sides.

    >>> names(UNetConfig())["down_blocks.0.attentions.0.blocks.0.ff.proj_in.kernel"]
    ('down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight', 'linear')
    """
    unet = abstract(lambda rngs: UNet(config, rngs=rngs))
    table = {}
    for path, leaf in nnx.to_flat_state(nnx.state(unet, nnx.Param)):
        name = foreign = ".".join(map(str, path))
        for pattern, theirs in RENAMED:
            foreign = re.sub(pattern, theirs, foreign)
        layouts: dict[int, Layout] = {4: "conv", 2: "linear"}
        layout = layouts.get(jnp.ndim(leaf), "same") if name.endswith(".kernel") else "same"
        table[name] = (foreign, layout)
    return table
