"""The names of CLIP's tensors: in published checkpoints, and as transformers 5 spells them.

Foreign names live here and nowhere else. Published files put a tower's tensors under
`text_model.` or `vision_model.`; transformers 5 saves a tower that stands alone without, and reads
both. Files are read and written elsewhere.
"""

import re

from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.clip.model import CLIP, TextEncoder, VisionEncoder

Names = dict[str, tuple[str, str]]
"""Our parameter's path -> (foreign tensor name, layout).

Layouts say what is there and here: "conv" OIHW and HWIO, "linear" (out, in) and (in, out), "same"
the same.
"""

_BUILD = {CLIPTextConfig: TextEncoder, CLIPVisionConfig: VisionEncoder, CLIPConfig: CLIP}
_TOWER = {CLIPTextConfig: "text.", CLIPVisionConfig: "vision.", CLIPConfig: ""}

# Ours, with `text.` or `vision.` before it -> transformers', in this order.
_RULES = [
    (r"^text\.projection\b", "text_projection"),
    (r"^vision\.projection\b", "visual_projection"),
    (r"^(text|vision)\.", r"\1_model."),
    (r"\b(class|patch|position|token)_embedding\b", r"embeddings.\1_embedding"),
    (r"\b(position|token)_embedding$", r"\1_embedding.weight"),
    (r"\blayers\b", "encoder.layers"),
    (r"\bnorm([12])\b", r"layer_norm\1"),
    (r"(layers\.\d+)\.([qkv]|out)\b", r"\1.self_attn.\2_proj"),
    (r"(layers\.\d+)\.(fc[12])\b", r"\1.mlp.\2"),
    (r"\bfinal_norm\b", "final_layer_norm"),
    (r"\bpre_norm\b", "pre_layrnorm"),  # sic
    (r"\bpost_norm\b", "post_layernorm"),
    (r"\b(kernel|scale)$", "weight"),
]


def names(config: CLIPTextConfig | CLIPVisionConfig | CLIPConfig) -> Names:
    """The published name and the layout of every parameter of the config's network.

    >>> names(CLIPTextConfig())["layers.0.q.kernel"]
    ('text_model.encoder.layers.0.self_attn.q_proj.weight', 'linear')
    """
    model = abstract(lambda rngs: _BUILD[type(config)](config, rngs=rngs))
    table = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        ours = ".".join(map(str, path))
        theirs = _TOWER[type(config)] + ours
        for pattern, name in _RULES:
            theirs = re.sub(pattern, name, theirs)
        kernel = {4: "conv", 2: "linear"}[leaf.get_value().ndim] if path[-1] == "kernel" else "same"
        table[ours] = (theirs, kernel)
    return table


_ANYWHERE = r"(.*\.)?position_ids"
SPARE_TEXT = (
    rf"{_ANYWHERE}|logit_scale|(vision_model|visual_projection)\..*|text_projection(\.weight)?"
)
SPARE_VISION = (
    rf"{_ANYWHERE}|logit_scale|(text_model|text_projection)\..*|visual_projection\.weight"
)
"""What a file of one tower may hold beside it: the rest of a whole CLIP."""


def canonical(name: str) -> str:
    """A tensor's published name from any spelling, in the file of a text encoder or a whole CLIP.

    Returns:
      The name, unchanged if it is not another spelling.

    >>> canonical("encoder.layers.0.mlp.fc1.bias")
    'text_model.encoder.layers.0.mlp.fc1.bias'
    """
    return _canonical(name, "text_model")


def vision_canonical(name: str) -> str:
    """`canonical` for the file of a vision encoder: only the file says which tower is meant.

    >>> vision_canonical("encoder.layers.0.mlp.fc1.bias")
    'vision_model.encoder.layers.0.mlp.fc1.bias'
    """
    return _canonical(name, "vision_model")


def _canonical(name: str, tower: str) -> str:
    bare = r"^(?=(embeddings|encoder|final_layer_norm|pre_layrnorm|post_layernorm)\.)"
    return re.sub(bare, f"{tower}.", name)
