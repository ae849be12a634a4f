"""convolve and upsample_convolve: every way of computing them, against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from torch.nn.functional import conv2d, interpolate, pad

from optdiff.nn import convolution
from optdiff.nn.convolution import convolve, upsample_convolve


def draw(shape, kernel, seed=0):
    rng = np.random.default_rng(seed)
    fan_in = np.prod(kernel[:3])
    return rng.normal(size=shape), rng.normal(size=kernel) / np.sqrt(fan_in)


def in_torch(x, kernel, stride=1, padding=(0, 0)):
    before, after = padding
    x = pad(torch.tensor(x).permute(0, 3, 1, 2), (before, after, before, after))
    return conv2d(x, torch.as_tensor(kernel).permute(3, 2, 0, 1), stride=stride).permute(0, 2, 3, 1)


def doubled(x):
    x = interpolate(torch.tensor(x).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    return x.permute(0, 2, 3, 1).numpy()


def relative(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size, stride, padding", [
    (3, 1, (1, 1)), (3, 2, (1, 1)), (3, 2, (0, 1)), (1, 1, (0, 0)), (5, 1, (2, 2)), (1, 2, (0, 0)),
])  # fmt: skip
@pytest.mark.parametrize("height, width", [(8, 8), (7, 10)])
def test_padding_is_what_it_says(size, stride, padding, height, width):
    x, kernel = draw((2, height, width, 3), (size, size, 3, 5))
    out = convolve(jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding)
    assert relative(out, in_torch(x, kernel, stride, padding)) < 1e-14


@pytest.mark.parametrize("batch, height, width, band", [
    (1, 8, 8, 2**24), (2, 7, 5, 2**24), (1, 1, 1, 1), (2, 9, 6, 1), (1, 10, 9, 900),
])  # fmt: skip
def test_winograd_is_the_convolution(batch, height, width, band, monkeypatch):
    """To rounding, for any size and any cut into bands."""
    x, kernel = draw((batch, height, width, 3), (3, 3, 3, 5))
    monkeypatch.setattr(convolution, "WINOGRAD_BAND", band)
    out = jax.jit(convolution._winograd)(jnp.asarray(x), jnp.asarray(kernel))
    assert relative(out, in_torch(x, kernel, padding=(1, 1))) < 1e-14


@pytest.mark.parametrize("size, stride, padding", [(3, 1, (1, 1)), (3, 2, (0, 1)), (5, 3, (2, 2))])
@pytest.mark.parametrize("height, width", [(8, 8), (5, 7), (5, 6)])
def test_windows_in_a_row_are_the_convolution(size, stride, padding, height, width):
    """To rounding, with the number of rows that is filled up (64, 60) and without."""
    x, kernel = draw((2 if width == 6 else 1, height, width, 3), (size, size, 3, 5))
    out = jax.jit(convolution._small(stride, padding))(jnp.asarray(x), jnp.asarray(kernel))
    assert relative(out, in_torch(x, kernel, stride, padding)) < 1e-14


@pytest.mark.parametrize("height, width", [(1, 1), (4, 3), (5, 8)])
def test_upsampling_folds_into_the_kernel(height, width):
    x, kernel = draw((2, height, width, 3), (3, 3, 3, 5))
    out = jax.jit(convolution._quickly_folded)(jnp.asarray(x), jnp.asarray(kernel))
    assert relative(out, in_torch(doubled(x), kernel, padding=(1, 1))) < 1e-14


@pytest.mark.parametrize("size, padding", [(3, (1, 1)), (3, (0, 1)), (1, (0, 0)), (5, (2, 2))])
@pytest.mark.parametrize("at_once", [1, 80, 10**6])
def test_the_gradient_of_a_kernel_row_by_row(size, padding, at_once, monkeypatch):
    """Some images at a time and all of them: its transpose is the convolution, to rounding."""
    x, kernel = draw((6, 5, 7, 3), (size, size, 3, 4))
    monkeypatch.setattr(convolution, "GRADIENT_ROWS", at_once)

    rows = functools.partial(convolution._by_rows, jnp.asarray(x), padding=(padding, padding))
    gradient = jax.jit(lambda g: jax.linear_transpose(rows, kernel)(g)[0])

    weights = torch.tensor(kernel).requires_grad_()
    out = in_torch(x, weights, padding=padding)
    g = np.random.default_rng(1).normal(size=out.shape)
    (out * torch.tensor(g)).sum().backward()
    assert relative(gradient(g), weights.grad) < 1e-14
    assert relative(rows(jnp.asarray(kernel)), out.detach()) < 1e-14


@pytest.mark.parametrize("argument", [0, 1])
def test_what_is_not_differentiated_costs_nothing(argument):
    x, kernel = (jnp.asarray(a) for a in draw((1, 5, 4, 3), (3, 3, 3, 2)))
    called = []

    def told(name):
        return lambda x, kernel: called.append(name) or convolution._same_3x3(x, kernel)

    function = convolution._bilinear(told("value"), told("along x"), told("along kernel"))
    jax.grad(lambda *args: function(*args).sum(), argument)(x, kernel)
    assert set(called) == {"value", ("along x", "along kernel")[argument]}


@pytest.mark.parametrize("function", [
    lambda x, kernel: convolve(x, kernel, padding=(1, 1)), upsample_convolve,
])  # fmt: skip
def test_fewer_multiplications_cost_no_digits(function):
    """Where the fast ways are taken: fewer products, and float32 no worse than 1e-6 off."""
    x, kernel = (a.astype(np.float32) for a in draw((1, 24, 24, 256), (3, 3, 256, 256)))
    image = doubled(x) if function is upsample_convolve else x
    exact = in_torch(image.astype(np.float64), kernel.astype(np.float64), padding=(1, 1))
    compiled = jax.jit(function).lower(x, kernel).compile()
    assert relative(compiled(x, kernel), exact) < 1e-6
    flops = 2 * exact.numel() * 9 * 256
    assert compiled.cost_analysis()["flops"] < 0.7 * flops


def test_small_images_cost_no_digits():
    """Where windows go side by side, and where that meets the folded kernel: float32 no worse."""
    for function, side in (
        (lambda x, k: convolve(x, k, padding=(1, 1)), 8),
        (upsample_convolve, 16),
        (upsample_convolve, 8),
    ):
        x, kernel = (a.astype(np.float32) for a in draw((1, side, side, 256), (3, 3, 256, 256)))
        image = doubled(x) if function is upsample_convolve else x
        exact = in_torch(image.astype(np.float64), kernel.astype(np.float64), padding=(1, 1))
        compiled = jax.jit(function).lower(x, kernel).compile()
        assert relative(compiled(x, kernel), exact) < 1e-6
        assert "convolution(" not in compiled.as_text()


WAYS = {
    "by rows": convolution._ordinary((1, 1)),
    "winograd": convolution._fast_3x3,
    "folded": convolution._fast_upsampled,
    "side by side": convolution._small(2, (0, 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_in_both_directions(way):
    def function(x, kernel):
        return WAYS[way](jnp.asarray(x), jnp.asarray(kernel))

    check_grads(function, draw((1, 5, 4, 3), (3, 3, 3, 2)), order=2)


def test_half_precision_keeps_to_the_plain_way():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw((1, 24, 24, 256), (3, 3, 256, 256)))
    plain = convolution._same_3x3(x, kernel)
    np.testing.assert_array_equal(convolve(x, kernel, padding=(1, 1)), plain)
