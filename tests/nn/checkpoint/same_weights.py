"""Two pipelines hold the same numbers: what the tests of checkpoints compare by."""

import numpy as np
from flax import nnx


def modules(pipeline):
    """A pipeline's networks by name."""
    return {"unet": pipeline.unet, "vae": pipeline.vae} | {
        f"text_encoder_{i}": module for i, module in enumerate(pipeline.text_encoders)
    }


def arrays(module):
    """A network's parameters by path."""
    state = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in state}


def assert_same(first, second):
    """Every parameter of every network is equal, bit for bit."""
    assert modules(first).keys() == modules(second).keys()
    for name, module in modules(first).items():
        there = arrays(modules(second)[name])
        for path, array in arrays(module).items():
            np.testing.assert_array_equal(array, there[path], err_msg=f"{name} {path}")
