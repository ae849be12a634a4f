"""Images as the vision tower of our own CLIP takes them, and the file that says so.

Published checkpoints bring a `preprocessor_config.json` with other numbers.
"""

from typing import Any

from jaxtyping import Array, Float


def to_clip(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Images in [0, 1] as the vision tower takes them: mean 0.5 and deviation 0.5 of each channel,
    which is what the `preprocessor_config.json` beside the weights says."""
    return 2.0 * images - 1.0


def preprocessor(side: int) -> dict[str, Any]:
    """What transformers' CLIPImageProcessor must know to give the tower what `to_clip` does."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
