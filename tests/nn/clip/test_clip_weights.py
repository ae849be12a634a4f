"""CLIP's tensor names against transformers', under every spelling that files use."""

import pytest
import torch
import transformers
from clip_oracle import OURS, TEXT, VISION, published
from flax import nnx
from safetensors.torch import save_file

from optdiff.nn.abstract import abstract
from optdiff.nn.clip.weights import canonical, names, vision_canonical

FIELDS = {
    transformers.CLIPTextModel: TEXT,
    transformers.CLIPTextModelWithProjection: TEXT,
    transformers.CLIPVisionModel: VISION,
    transformers.CLIPVisionModelWithProjection: VISION,
    transformers.CLIPModel: {"text_config": TEXT, "vision_config": VISION, "projection_dim": 12},
}


def table_of(kind):
    """The config and our module's abstract parameters beside the table of names."""
    config_class, build = OURS[kind]
    config = config_class.from_dict({"architectures": [kind.__name__], **FIELDS[kind]})
    module = abstract(lambda rngs: build(config, rngs=rngs))
    return names(config), nnx.to_flat_state(nnx.state(module))


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_names_and_layouts_are_those_of_the_torch_module(kind):
    theirs = published(kind(kind.config_class(**FIELDS[kind])).state_dict(), kind)
    table, ours = table_of(kind)
    assert sorted(name for name, _ in table.values()) == sorted(theirs)
    turn = {"conv": (2, 3, 1, 0), "linear": (1, 0)}
    for path, leaf in ours:
        name, layout = table[".".join(map(str, path))]
        shape = tuple(theirs[name].shape)
        shape = tuple(shape[i] for i in turn[layout]) if layout in turn else shape
        assert leaf.get_value().shape == shape, name


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_every_spelling_becomes_the_published_name(kind):
    read = vision_canonical if "Vision" in kind.__name__ else canonical
    table, _ = table_of(kind)
    for name, _ in table.values():
        assert read(name) == name
    # transformers 5 leaves a lone tower's prefix off
    for name in kind(kind.config_class(**FIELDS[kind])).state_dict():
        assert read(name) in {name for name, _ in table.values()}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_transformers_reads_the_names_that_we_write(kind, tmp_path):
    model = kind(kind.config_class(**FIELDS[kind]))
    model.config.save_pretrained(tmp_path)
    state = published(model.state_dict(), kind)
    written = {name: state[name].contiguous() for name, _ in table_of(kind)[0].values()}
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
