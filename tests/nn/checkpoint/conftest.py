"""Small Stable Diffusion folders written by PyTorch, made once for all tests of checkpoints."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from stable_diffusion_folder import write


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """SD 1.5 in float32, and in float16 as the variant fp16."""
    folder = write(tmp_path_factory.mktemp("sd15"), "sd15")
    return write(folder, "sd15", variant="fp16")


@pytest.fixture(scope="session")
def sd21(tmp_path_factory):
    """SD 2.1 in shards."""
    return write(tmp_path_factory.mktemp("sd21"), "sd21", max_shard_size="200KB")


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory):
    """SDXL, two text encoders."""
    return write(tmp_path_factory.mktemp("sdxl"), "sdxl")
