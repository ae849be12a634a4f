"""CLIP against PyTorch, whole and block by block, and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from clip_oracle import OURS, TEXT, VISION, images, nchw, pair, relative, sentences
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.clip.model import CLIP, TextEncoder, VisionEncoder
from optdiff.nn.clip.transformer import LayerNorm
from optdiff.nn.clip.weights import names

Text, TextProjected = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
Vision, VisionProjected = transformers.CLIPVisionModel, transformers.CLIPVisionModelWithProjection
JOINT = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 20}

TEXTS = {
    # name: torch class, config, id that ends a text, id that pads
    "clip": (Text, TEXT, 63, 63),
    "bigG": (
        TextProjected,
        TEXT
        | {
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 0.1,
            "num_attention_heads": 4,
            "projection_dim": 36,
        },
        63,
        0,
    ),
    # New tokens lie beyond the end's id: the rules differ, and the config says which is meant.
    "new tokens": (TextProjected, TEXT | {"eos_token_id": 40}, 40, 40),
}
# Tiny networks: compiling takes all the time, and takes half as long without LLVM's optimizer.
# Fused, as users have it, so that what is returned twice is computed once.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}
run = jax.jit(lambda model, *inputs: model(*inputs), compiler_options=QUICK)


def assert_same_encoding(ours, theirs):
    assert relative(ours.last_hidden_state, theirs.last_hidden_state) < 2e-5
    for state, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert relative(state, expected) < 2e-5
    projected = theirs.get("text_embeds", theirs.get("image_embeds"))
    assert (projected is None) == (ours.projected is None)
    if projected is None:
        assert relative(ours.pooled, theirs.pooler_output) < 2e-5
    else:
        assert relative(ours.projected, projected) < 2e-5


@pytest.mark.parametrize(("kind", "fields", "eos", "pad"), TEXTS.values(), ids=TEXTS)
@torch.no_grad()
def test_text_encoder_matches_torch(kind, fields, eos, pad):
    theirs, ours = pair(kind, fields)
    ids = sentences(5, 11, vocab=64, eos=eos, pad=pad)
    expected = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
    assert_same_encoding(run(ours, jnp.asarray(ids)), expected)


@torch.no_grad()
def test_masked_tokens_are_looked_at_by_no_other():
    theirs, ours = pair(Text, TEXT)
    ids = sentences(5, 9, vocab=64, eos=63, pad=5)  # fewer tokens than positions, too
    mask = np.random.default_rng(0).random(ids.shape) < 0.7
    mask[:, 0] = True
    tokens, padding = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
    expected = theirs(tokens, attention_mask=padding, output_hidden_states=True)
    assert_same_encoding(run(ours, jnp.asarray(ids), jnp.asarray(mask)), expected)


@pytest.mark.parametrize(("eos", "place"), [(40, 2), (2, 1), (63, 0)])
def test_pooling_reads_the_first_end_or_by_the_legacy_rule_the_largest_id(eos, place):
    # 40 ends the text and 55 is a token added later; where nothing ends it, the first is read.
    _, ours = pair(Text, TEXT | {"eos_token_id": eos, "num_hidden_layers": 1})
    encoding = run(ours, jnp.array([[50, 55, 40, 40, 40]]))
    np.testing.assert_array_equal(encoding.pooled, encoding.last_hidden_state[:, place])


def test_an_id_outside_the_vocabulary_is_nan_not_a_neighbour():
    _, ours = pair(Text, TEXT)
    ids = sentences(5, 11, vocab=64, eos=63, pad=63)
    ids[:, 4] = 64
    assert jnp.isnan(run(ours, jnp.asarray(ids)).last_hidden_state[:, 4:]).all()


def test_too_many_tokens_and_images_of_another_size_are_refused():
    text = abstract(lambda rngs: TextEncoder(CLIPTextConfig(**TEXT), rngs=rngs))
    with pytest.raises(ValueError, match="12 tokens, but this text encoder has 11"):
        text(jnp.zeros((1, 12), jnp.int32))
    vision = abstract(lambda rngs: VisionEncoder(CLIPVisionConfig(**VISION), rngs=rngs))
    with pytest.raises(ValueError, match=r"images of 16x16.*14x14"):
        vision(jnp.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize(("kind", "act"), [(Vision, "gelu"), (VisionProjected, "quick_gelu")])
@torch.no_grad()
def test_vision_encoder_matches_torch(kind, act):
    # 14 pixels, patches of 4: two rows and columns of pixels are left over.
    theirs, ours = pair(kind, VISION | {"hidden_act": act})
    x = images(2, 14)
    assert_same_encoding(run(ours, x), theirs(nchw(x), output_hidden_states=True))


@torch.no_grad()
def test_joint_model_matches_torch():
    theirs, ours = pair(transformers.CLIPModel, JOINT)
    ids, x = sentences(3, 11, vocab=64, eos=63, pad=63), images(2, 14)
    expected = theirs(torch.from_numpy(ids).long(), nchw(x))
    got = run(ours, jnp.asarray(ids), x)
    assert relative(got.image_features, expected.image_embeds) < 2e-5
    assert relative(got.text_features, expected.text_embeds) < 2e-5
    assert relative(got.logits, expected.logits_per_image) < 2e-5
    np.testing.assert_allclose(jnp.linalg.norm(got.text_features, axis=-1), 1, rtol=1e-6)


@pytest.fixture(scope="module")
def blocks():
    """What goes into and comes out of every PyTorch module, and our network."""
    theirs, ours = pair(transformers.CLIPModel, JOINT)
    seen = {}
    for name, module in theirs.named_modules():
        module.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i, o)}))
    with torch.no_grad():
        ids = torch.from_numpy(sentences(2, 11, vocab=64, eos=63, pad=63)).long()
        theirs(ids, nchw(images(2, 14)))
    return seen, ours


BLOCKS = {
    "text.layers.0.norm1": "text_model.encoder.layers.0.layer_norm1",
    "text.layers.0.fc1": "text_model.encoder.layers.0.mlp.fc1",
    "text.layers.1": "text_model.encoder.layers.1",
    "text.final_norm": "text_model.final_layer_norm",
    "text.projection": "text_projection",
    "vision.patch_embedding": "vision_model.embeddings.patch_embedding",
    "vision.pre_norm": "vision_model.pre_layrnorm",
    "vision.layers.1.q": "vision_model.encoder.layers.1.self_attn.q_proj",
    "vision.layers.1": "vision_model.encoder.layers.1",
    "vision.post_norm": "vision_model.post_layernorm",
    "vision.projection": "visual_projection",
}


@pytest.mark.parametrize("path", BLOCKS)
def test_each_block_matches_torch_on_the_same_input(blocks, path):
    seen, module = blocks
    (before, *_), after = seen[BLOCKS[path]]
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    x, after = before.numpy(), after.numpy()
    if x.ndim == 4:  # pixels
        x, after = np.moveaxis(x, 1, -1), np.moveaxis(after, 1, -1)
    x = jnp.asarray(x, jnp.float32)
    causal = {"causal": True} if path == "text.layers.1" else {}
    got = jax.jit(lambda module, x: module(x, **causal), compiler_options=QUICK)(module, x)
    assert relative(got, torch.from_numpy(after.copy())) < 5e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_takes_its_moments_in_float32(dtype):
    # A mean a hundred times the spread: moments in bfloat16, or E[x^2] - E[x]^2, would drown it.
    norm = LayerNorm(64, eps=1e-5, param_dtype=dtype)
    x = jnp.asarray(100 + np.random.default_rng(0).normal(size=(4, 64)), dtype)
    exact = torch.nn.functional.layer_norm(torch.tensor(np.asarray(x, np.float64)), (64,))
    assert norm(x).dtype == dtype
    assert relative(norm(x), exact) < (2e-5 if dtype == jnp.float32 else 4e-3)


def cast(model, dtype):
    """The same weights in another type."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))


def test_bfloat16_stays_near_float32_and_says_so():
    _, ours = pair(transformers.CLIPModel, JOINT)
    bfloat16 = cast(ours, jnp.bfloat16)
    ids, x = jnp.asarray(sentences(3, 11, vocab=64, eos=63, pad=63)), images(2, 14)
    full, half = run(ours, ids, x), run(bfloat16, ids, x)
    for a, b in zip(half, full, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b)
    # Computed in what the weights are stored in; what is compared is float32.
    for tower, inputs in ((bfloat16.text, ids), (bfloat16.vision, x)):
        assert jax.eval_shape(tower, inputs).last_hidden_state.dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32


def test_lowers_for_tpu_and_cuda():
    config = CLIPConfig.from_dict(JOINT)
    model = abstract(lambda rngs: CLIP(config, param_dtype=jnp.bfloat16, rngs=rngs))
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    ids = jax.ShapeDtypeStruct((3, 11), jnp.int32)
    mask, x = jax.ShapeDtypeStruct((3, 11), bool), jax.ShapeDtypeStruct((2, 14, 14, 3), jnp.float32)
    exported = jax.export.export(forward, platforms=["tpu", "cuda"])(state, ids, x, mask)
    assert exported.out_avals[-1].shape == (2, 3)


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "with_projection": True,
}
VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        (TextEncoder, CLIPTextConfig(**CLIP_L), 123_060_480),
        (TextEncoder, CLIPTextConfig(**BIG_G), 694_659_840),
        (VisionEncoder, CLIPVisionConfig(**VIT_L), 303_179_776),
    ],
    ids=["CLIP-L text", "bigG text", "CLIP-L vision"],
)
def test_parameter_counts_at_full_size(kind, config, count):
    model = abstract(lambda rngs: kind(config, rngs=rngs))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(nnx.state(model))) == count


def test_fresh_weights_spread_as_transformers_spreads_them():
    fields = JOINT | {
        "text_config": TEXT | {"num_hidden_layers": 1, "initializer_factor": 2.0},
        "vision_config": VISION
        | {"num_hidden_layers": 1, "initializer_factor": 2.0, "initializer_range": 0.1},
        "initializer_factor": 2.0,
    }
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**fields)).state_dict()
    config, build = OURS[transformers.CLIPModel]

    @jax.jit
    def fresh():
        key = jax.random.key(0, impl="rbg")  # compiles faster than threefry
        return build(config.from_dict(fields), rngs=nnx.Rngs(key))

    ours = fresh()
    assert float(ours.logit_scale[...]) == pytest.approx(float(theirs["logit_scale"]))
    table = names(ours.config)
    for path, leaf in nnx.to_flat_state(nnx.state(ours)):
        value = np.asarray(leaf.get_value())
        expected = theirs[table[".".join(map(str, path))][0]].numpy()
        if expected.std() and value.size > 500:
            assert value.std() == pytest.approx(expected.std(), rel=0.15), path
        elif not expected.std() and value.ndim:
            np.testing.assert_array_equal(value, expected.reshape(value.shape))


@pytest.mark.slow
@torch.no_grad()
def test_full_size_text_encoder_matches_torch():
    theirs, ours = pair(Text, CLIP_L)
    ids = sentences(2, 77, vocab=49408, eos=49407, pad=49407)
    run = jax.jit(lambda text, ids: text(ids))
    expected = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
    assert_same_encoding(run(ours, jnp.asarray(ids)), expected)
    half = run(cast(ours, jnp.bfloat16), jnp.asarray(ids))
    assert relative(half.last_hidden_state, expected.last_hidden_state) < 2e-2
    assert relative(half.hidden_states[-2], expected.hidden_states[-2]) < 2e-2
