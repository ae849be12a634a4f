"""Images as our CLIP takes them are those of transformers' processor."""

import jax.numpy as jnp
import numpy as np
from transformers import CLIPImageProcessor

from optdiff.nn.clip.images import preprocessor, to_clip


def test_transformers_processor_gives_the_tower_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    theirs = CLIPImageProcessor.from_dict(preprocessor(32))(list(pixels), return_tensors="np")
    ours = to_clip(jnp.float32(pixels) / 255)
    np.testing.assert_allclose(ours, theirs["pixel_values"].transpose(0, 2, 3, 1), atol=1e-6)
