"""Stable Diffusion 1.5 at full size against PyTorch in float64: 10 GiB and about a minute."""

import pytest
from unet_oracle import drawn, oracle, ours, relative, run, their_run

from optdiff.nn.unet.config import UNetConfig

SD15 = {"cross_attention_dim": 768}


@pytest.mark.slow
def test_stable_diffusion_1_5():
    theirs = oracle(SD15)
    inputs = drawn(UNetConfig.from_dict(SD15), (64, 64), batch=1)
    expected = their_run(theirs, **inputs)
    tensors = theirs.state_dict()
    del theirs  # so that each float64 tensor goes as its float32 one comes
    error = relative(run(ours(SD15, tensors), **inputs), expected)
    print(f"SD 1.5, 64x64 latents, float32 against PyTorch in float64: {error:.2e}")
    assert error < 2e-5
