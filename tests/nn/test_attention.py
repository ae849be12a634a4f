"""attention: softmax(q k' / sqrt(d)) v by every road, against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax._src.cudnn import fused_attention_stablehlo as fused

from optdiff.nn import attention as module
from optdiff.nn.attention import attention

ROADS = {"cpu": module._by_head, "accelerator": module._batched}
"""The ways that do not need a GPU; each runs anywhere, so the second is tested here too."""


def draw(b, n, m, heads, d, d2=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, n, heads, d), (b, m, heads, d), (b, m, heads, d2 or d))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def in_torch(q, k, v, mask=None, causal=False, scale=None):
    """The output and its gradients, weighted by `q`-independent noise, in float64."""
    tensors = [
        torch.tensor(np.asarray(x)).double().transpose(1, 2).requires_grad_() for x in (q, k, v)
    ]
    mask = None if mask is None else torch.tensor(np.asarray(mask))
    out = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=mask, is_causal=causal, scale=scale
    ).transpose(1, 2)
    (out * torch.tensor(weights(out.shape))).sum().backward()
    return [out.detach().numpy(), *(t.grad.transpose(1, 2).numpy() for t in tensors)]


def weights(shape):
    return np.random.default_rng(7).normal(size=shape)


def relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


CASES = {
    "self": dict(b=2, n=50, m=50, heads=3, d=8),
    "cross": dict(b=1, n=37, m=7, heads=2, d=40),
    "wide values": dict(b=1, n=20, m=30, heads=1, d=16, d2=24),
    "one head": dict(b=1, n=5, m=2, heads=1, d=4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("limit", [2**30, 100], ids=["at once", "in chunks"])
def test_outputs_and_gradients_are_those_of_torch(road, case, limit, monkeypatch):
    monkeypatch.setattr(module, "CPU_LOGITS", limit)
    monkeypatch.setattr(module, "ACCELERATOR_LOGITS", limit)
    q, k, v = draw(**CASES[case])
    run = functools.partial(ROADS[road], causal=False, scale=q.shape[-1] ** -0.5)

    def loss(q, k, v):
        out = run(q, k, v, None)
        return (out * jnp.asarray(weights(out.shape), jnp.float32)).sum(), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    for actual, expected in zip((out, *grads), in_torch(q, k, v), strict=True):
        assert relative(actual, expected) < 1e-6


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("limit", [2**30, 100], ids=["at once", "in chunks"])
def test_masks(road, limit, monkeypatch):
    monkeypatch.setattr(module, "CPU_LOGITS", limit)
    monkeypatch.setattr(module, "ACCELERATOR_LOGITS", limit)
    q, k, v = draw(2, 33, 33, 3, 8)
    rng = np.random.default_rng(1)
    full = jnp.asarray(rng.random((2, 3, 33, 33)) < 0.5).at[..., 0].set(True)
    causal = jnp.tri(33, dtype=bool)[None, None]
    padding = full[:, :1, :1]
    for mask, is_causal, both in (
        (full, False, full),
        (padding, False, padding),
        (None, True, causal),
        (padding, True, padding & causal),
    ):
        out = ROADS[road](q, k, v, mask, causal=is_causal, scale=8**-0.5)
        expected = in_torch(q, k, v, jnp.broadcast_to(both, full.shape))[0]
        assert relative(out, expected) < 1e-6


def test_a_query_that_may_look_nowhere_gets_the_mean():
    q, k, v = draw(1, 3, 5, 2, 4)
    mask = jnp.ones((1, 1, 3, 5), bool).at[:, :, 1].set(False)
    out = attention(q, k, v, mask=mask)
    np.testing.assert_allclose(out[:, 1], v.mean(1), rtol=1e-5)


def test_scale_is_a_factor_on_the_logits():
    q, k, v = draw(1, 9, 11, 2, 16)
    np.testing.assert_allclose(attention(q, k, v, scale=0.5), attention(2 * q, k, v), atol=1e-5)
    assert relative(attention(q, k, v, scale=0.5), in_torch(q, k, v, scale=0.5)[0]) < 1e-6


def test_large_logits_do_not_overflow():
    q, k, v = draw(1, 9, 11, 2, 16)
    out = attention(1e3 * q, 1e3 * k, v)
    assert relative(out, in_torch(1e3 * q, 1e3 * k, v)[0]) < 1e-4


@pytest.mark.parametrize("road", ROADS)
def test_half_precision_in_float32_inside(road):
    q, k, v = (x.astype(jnp.bfloat16) for x in draw(1, 64, 300, 2, 40))
    out = ROADS[road](q, k, v, None, causal=False, scale=40**-0.5)
    assert out.dtype == jnp.bfloat16
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    # Rounding the output alone is 2e-3 (8 bits); the weights may be rounded once as well.
    assert relative(out, in_torch(*wide)[0]) < 4e-3


def test_float64_stays_float64():
    q, k, v = (x.astype(jnp.float64) for x in draw(1, 10, 12, 2, 8))
    assert relative(attention(q, k, v), in_torch(q, k, v)[0]) < 1e-14


@pytest.mark.parametrize("grad", [False, True])
def test_no_gigabyte_of_logits(grad):
    """64x64 latents, 8 heads: all the logits would be 537 MB."""
    tokens = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)

    def run(q, k, v):
        return attention(q, k, v).sum()

    function = jax.grad(run, (0, 1, 2)) if grad else run
    memory = jax.jit(function).lower(tokens, tokens, tokens).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (120e6 if grad else 60e6)


def lowered(platform, dtype, head_dim, **kwargs):
    x = jax.ShapeDtypeStruct((1, 64, 2, head_dim), dtype)
    traced = jax.jit(lambda x: attention(x, x, x, **kwargs)).trace(x)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def a_cudnn(monkeypatch):
    """cuDNN present as far as JAX can tell, so that programs for CUDA are made on this machine."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    module._cudnn_takes.cache_clear()
    jax.clear_caches()
    yield
    module._cudnn_takes.cache_clear()
    jax.clear_caches()


@pytest.mark.usefixtures("a_cudnn")
def test_cuda_takes_the_fused_kernel_where_it_fits():
    assert "__cudnn$fmha" in lowered("cuda", jnp.bfloat16, 40)
    assert "__cudnn$fmha" in lowered("cuda", jnp.float16, 128, causal=True)
    assert "__cudnn$fmha" not in lowered("tpu", jnp.bfloat16, 40)
    assert "__cudnn$fmha" not in lowered("cpu", jnp.bfloat16, 40)


@pytest.mark.usefixtures("a_cudnn")
@pytest.mark.parametrize(
    "dtype, head_dim", [(jnp.float32, 40), (jnp.bfloat16, 42), (jnp.bfloat16, 512)]
)
def test_cuda_falls_back_where_the_fused_kernel_does_not_fit(dtype, head_dim):
    assert "__cudnn$fmha" not in lowered("cuda", dtype, head_dim)


@pytest.mark.usefixtures("a_cudnn")
def test_cuda_falls_back_for_an_odd_number_of_keys_as_their_gradient_must():
    q, k = (jax.ShapeDtypeStruct((1, n, 2, 40), jnp.bfloat16) for n in (64, 77))
    for keys, fits in ((k, False), (q, True)):
        traced = jax.jit(attention).trace(q, keys, keys)
        assert ("__cudnn$fmha" in traced.lower(lowering_platforms=("cuda",)).as_text()) == fits


def hopper():
    """Whether a GPU is here that cuDNN takes head dims up to 256 on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability[:1].isdigit() and float(capability) >= 9.0


@pytest.mark.skipif(not hopper(), reason="needs an NVIDIA GPU of Hopper's kind or later")
@pytest.mark.parametrize(
    "n, m, d, causal",
    [(1024, 1024, 40, False), (1024, 78, 80, False), (64, 64, 160, False), (78, 78, 64, True)],
)
def test_the_fused_kernel_agrees_with_torch_on_a_gpu(n, m, d, causal):
    """The head dims of Stable Diffusion 1.5, with gradients."""
    q, k, v = (x.astype(jnp.bfloat16) for x in draw(2, n, m, 4, d))
    assert "__cudnn$fmha" in jax.jit(attention).lower(q, k, v).as_text()

    def loss(q, k, v):
        out = attention(q, k, v, causal=causal)
        return (out * jnp.asarray(weights(out.shape), jnp.float32)).sum(), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    wide = [np.asarray(x, np.float32) for x in (q, k, v)]
    for actual, expected in zip((out, *grads), in_torch(*wide, causal=causal), strict=True):
        assert relative(actual, expected) < 1e-2


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_without_cudnn(platform):
    assert "__cudnn$fmha" not in lowered(platform, jnp.bfloat16, 40)
