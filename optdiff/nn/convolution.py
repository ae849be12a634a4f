"""Convolutions, NHWC with HWIO kernels: XLA's own, and on a CPU fewer multiplications.

This file owns how a convolution is computed and nothing else; parameters belong to `layers.py`.
On an accelerator the library chooses the algorithm, and nothing is done here. On a CPU there are
three ways besides XLA's own convolution, all with the same result to rounding:
- Winograd's short convolutions, for many channels of large images: fewer multiplications;
- folded upsampling, which does not compute with the copies that nearest-neighbour makes;
- windows side by side in one matrix product, for small images: three times XLA's speed there.
The shape decides when a program is traced, the platform when it is lowered.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from optdiff.nn.linear import product

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros (before, after) the rows, and the columns."""

# Below these the transforms cost as much as the multiplications save: of the kernel where there are
# few pixels, of the image where there are few channels. Above, 1.3 to 1.75 times faster on 2 cores.
WINOGRAD_PIXELS = 512
FOLDED_PIXELS = 256
WINOGRAD_CHANNELS = 256
# On fewer pixels than Winograd's, with as many channels, windows side by side are 1.5 to 3 times
# faster: XLA multiplies tall matrices well, but for sums this long 49 to 64 rows take twice the
# time of 72.
SLOW_ROWS, FAST_ROWS = range(49, 65), 72
# Pixels that the gradient of a kernel is summed over at a time: their temporaries stay in cache.
GRADIENT_ROWS = 4096
# Temporaries of one band of the image, in numbers: 64 MB in float32.
WINOGRAD_BAND = 2**24

# F(2x2, 3x3): y = A [(G w G') * (B d B')] A' turns a 4x4 tile d into 2x2 outputs.
_B = ((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0))
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_A = ((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "p q c c2"],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Array, "b h2 w2 c2"]:
    """Convolve (in fact correlate, as networks do) with explicit padding.

    Args:
      x: images (b, h, w, c).
      kernel: (height, width, c, c2).
      stride: step in both directions.
      padding: zeros (before, after) in both directions. XLA's SAME differs from what checkpoints
        were trained with wherever there is a stride, so it is spelled out.

    Returns:
      (b, h2, w2, c2), `h2 = (h + before + after - height) // stride + 1`.

    >>> convolve(jnp.ones((1, 5, 4, 3)), jnp.ones((3, 3, 3, 8)), stride=2, padding=(0, 1)).shape
    (1, 2, 2, 8)
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == (0, 0):
        return product(x, kernel[0, 0])
    if _precise(x) and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS:
        pixels = x.shape[0] * x.shape[1] * x.shape[2] // stride**2
        if pixels < WINOGRAD_PIXELS:
            return _small(stride, padding)(x, kernel)
        if kernel.shape[:2] == (3, 3) and stride == 1 and padding == (1, 1):
            return _fast_3x3(x, kernel)
    if _precise(x) and stride == 1:
        return _ordinary(padding)(x, kernel)
    return _direct(x, kernel, stride, (padding, padding))


def upsample_convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"]
) -> Float[Array, "b h2 w2 c2"]:
    """Double height and width by the nearest neighbour, then convolve 3x3 with a padding of one.

    >>> upsample_convolve(jnp.ones((1, 5, 4, 3)), jnp.ones((3, 3, 3, 8))).shape
    (1, 10, 8, 8)
    """
    large = x.shape[0] * x.shape[1] * x.shape[2] >= FOLDED_PIXELS
    if large and _precise(x):
        return _fast_upsampled(x, kernel)
    return convolve(_doubled(x), kernel, padding=(1, 1))


def _precise(x: Array) -> bool:
    """Sums of weights would be rounded to the type of `x`: not in half precision."""
    return x.dtype in (jnp.float32, jnp.float64)


def _direct(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _same_3x3(x: Array, kernel: Array) -> Array:
    return _direct(x, kernel, 1, ((1, 1), (1, 1)))


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def _upsampled(x: Array, kernel: Array) -> Array:
    return _same_3x3(_doubled(x), kernel)


def _bilinear(value, along_x, along_kernel):
    """A convolution whose derivative is `along_x(dx, kernel) + along_kernel(x, dkernel)`, in
    forward and, transposed, in reverse mode; what is not differentiated costs nothing."""

    @jax.custom_jvp
    def function(x: Array, kernel: Array) -> Array:
        return value(x, kernel)

    @functools.partial(function.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        out = function(x, kernel)
        if isinstance(dkernel, SymbolicZero):
            return out, along_x(dx, kernel)
        if isinstance(dx, SymbolicZero):
            return out, along_kernel(x, dkernel)
        return out, along_x(dx, kernel) + along_kernel(x, dkernel)

    return function


def _on_cpu(fast, plain):
    """`fast` on a CPU, `plain` elsewhere; both bilinear in x and the kernel."""

    def function(x: Array, kernel: Array) -> Array:
        return jax.lax.platform_dependent(x, kernel, cpu=fast, default=plain)

    return function


@functools.cache
def _ordinary(padding: tuple[int, int]):
    """XLA's own convolution, except for the gradient of the kernel on a CPU."""
    both = {"padding": (padding, padding)}
    direct = functools.partial(_direct, stride=1, **both)
    return _bilinear(direct, direct, _on_cpu(functools.partial(_by_rows, **both), direct))


def _by_rows(x: Array, kernel: Array, padding: Padding) -> Array:
    """A convolution whose transpose, the gradient of the kernel, is one product a kernel row.

    What is beside a pixel is added after the products, what is above and below it before. In the
    transpose the output's gradient therefore lies side by side for each column of the kernel, and
    the image itself is shifted by rows alone. XLA makes of that gradient a convolution by a kernel
    as large as the image: 1.1 to 7 times slower, the most where channels are few.
    """
    b, h, w, _ = x.shape

    @functools.partial(jax.checkpoint, prevent_cse=False)  # or its shifted images would be kept
    def some(x: Array, kernel: Array) -> Array:
        return _some_by_rows(x, kernel, padding)

    many = next((m for m in range(b, 0, -1) if b % m == 0 and m * h * w <= GRADIENT_ROWS), 1)
    if b * h * w <= 2 * GRADIENT_ROWS or 4 * many * h * w < GRADIENT_ROWS:
        return some(x, kernel)
    out = jax.lax.map(lambda x: some(x, kernel), x.reshape(b // many, many, *x.shape[1:]))
    return out.reshape(b, *out.shape[2:])


def _some_by_rows(x: Array, kernel: Array, padding: Padding) -> Array:
    p, q, c, c2 = kernel.shape
    h, w = x.shape[1:3]
    above, (before, after) = padding
    high, wide = h + sum(above) - p + 1, w + before + after - q + 1
    x = jnp.pad(x, ((0, 0), above, (0, 0), (0, 0)))
    beside = kernel.transpose(0, 2, 1, 3).reshape(p, c, q * c2)
    rows = (product(x[:, i : i + high], beside[i]) for i in range(p))
    columns = functools.reduce(jnp.add, rows)  # (b, high, w, q * c2)
    still, none = (0, 0, 0), jnp.zeros((), x.dtype)

    def shifted(j: int, column: Array) -> Array:  # negative padding cuts off
        shift = (before - j, wide - w - before + j, 0)
        return jax.lax.pad(column, none, (still, still, shift, still))

    parts = jnp.split(columns, q, -1)
    return functools.reduce(jnp.add, (shifted(j, part) for j, part in enumerate(parts)))


def _unrolled(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """One product, with what a window covers side by side in a row (im2col)."""
    b, c = x.shape[0], x.shape[3]
    p, q, _, c2 = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = ((x.shape[1] - p) // stride + 1, (x.shape[2] - q) // stride + 1)

    def seen(i: int, j: int) -> Array:  # by place (i, j) of every window
        rows, columns = (
            slice(k, k + (n - 1) * stride + 1, stride) for k, n in ((i, high), (j, wide))
        )
        return x[:, rows, columns]

    windows = jnp.concatenate([seen(i, j) for i in range(p) for j in range(q)], -1)
    windows = windows.reshape(b * high * wide, p * q * c)
    spare = FAST_ROWS - len(windows) if len(windows) in SLOW_ROWS else 0
    out = jnp.pad(windows, ((0, spare), (0, 0))) @ kernel.reshape(-1, c2)
    return out[: len(windows)].reshape(b, high, wide, c2)


@functools.cache
def _small(stride: int, padding: tuple[int, int]):
    both = {"stride": stride, "padding": (padding, padding)}
    direct = functools.partial(_direct, **both)
    return _bilinear(_on_cpu(functools.partial(_unrolled, **both), direct), direct, direct)


def _transform(matrix: Sequence[Sequence[float]], grid: Sequence[Sequence[Array]]):
    """`matrix @ grid @ matrix'`, for a grid of arrays and a matrix of mostly zeros and ones."""

    def rows(parts: Sequence[Array]) -> list[Array]:
        return [
            functools.reduce(jnp.add, (c * p for c, p in zip(row, parts, strict=True) if c))
            for row in matrix
        ]

    half = [rows(column) for column in zip(*grid, strict=True)]
    return [rows(row) for row in zip(*half, strict=True)]


def _when(x: Array, kernel: Array) -> Array:
    """The kernel, not before x is there.

    A transformed kernel depends on no input, so XLA makes those of a whole network first thing and
    keeps them all: 700 MB for Stable Diffusion. Adding a zero that it cannot foresee prevents that;
    its optimization_barrier is gone before it orders the program.
    """
    return kernel + jnp.minimum(jnp.abs(x[0, 0, 0, 0]), 0)


def _winograd(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution in 4/9 of the multiplications, F(2x2, 3x3) of arXiv 1509.09308, sec. 4.

    The image is cut into tiles of 2x2 outputs and taken a band of tile rows at a time, so that the
    transforms, four times the size of the image, stay small.
    """
    b, h, w, c = x.shape
    high, wide = -(-h // 2), -(-w // 2)  # tiles
    bands = min(high, -(-16 * b * high * wide * sum(kernel.shape[2:]) // WINOGRAD_BAND))
    rows = -(-high // bands)
    kernel = _when(x, kernel)
    weights = _transform(_G, [[kernel[i, j] for j in range(3)] for i in range(3)])
    x = jnp.pad(x, ((0, 0), (1, 2 * rows * bands + 1 - h), (1, 2 * wide + 1 - w), (0, 0)))

    def band(start: Array | int) -> Array:  # (b, 2 * rows, 2 * wide, c2)
        part = jax.lax.dynamic_slice_in_dim(x, start, 2 * rows + 2, 1)
        tiles = [
            [part[:, i : i + 2 * rows : 2, j : j + 2 * wide : 2] for j in range(4)]
            for i in range(4)
        ]
        products = [
            [t.reshape(-1, c) @ u for t, u in zip(*pair, strict=True)]
            for pair in zip(_transform(_B, tiles), weights, strict=True)
        ]
        out = jnp.stack([jnp.stack(row, 1) for row in _transform(_A, products)], 1)
        out = out.reshape(b, rows, wide, 2, 2, -1).swapaxes(2, 3)
        return out.reshape(b, 2 * rows, 2 * wide, -1)

    if bands == 1:
        return band(0)[:, :h, :w]
    out = jax.lax.map(band, 2 * rows * jnp.arange(bands))  # (bands, b, 2 * rows, 2 * wide, c2)
    return jnp.moveaxis(out, 0, 1).reshape(b, -1, 2 * wide, kernel.shape[3])[:, :h, :w]


def _folded(x: Array, kernel: Array, convolution: Callable[..., Array]) -> Array:
    """Upsampling and convolution in one, in 4/9 of the multiplications.

    A 3x3 window of the doubled image covers 2x2 pixels of the original: for each of the four
    positions of an output in its pixel, the weights that meet the same pixel are added first.
    """

    def fold(weights: Array, axis: int) -> list[Array]:
        first, middle, last = jnp.split(weights, 3, axis)
        return [
            jnp.concatenate([first, middle + last], axis),
            jnp.concatenate([first + middle, last], axis),
        ]

    def place(weights: Array, i: int, j: int) -> Array:
        return convolution(x, weights, padding=((1 - i, i), (1 - j, j)))

    out = jnp.stack(
        [
            jnp.stack([place(cell, i, j) for j, cell in enumerate(fold(row, 1))], 3)
            for i, row in enumerate(fold(kernel, 0))
        ],
        2,
    )  # (b, h, 2, w, 2, c2)
    return out.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], -1)


def _quickly_folded(x: Array, kernel: Array) -> Array:
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    small = pixels < WINOGRAD_PIXELS and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    way = functools.partial(_unrolled if small else _direct, stride=1)
    return _folded(x, _when(x, kernel), way)


# XLA's own gradients are faster than those of Winograd's transform, and keep x rather than that.
_fast_3x3 = _bilinear(_on_cpu(_winograd, _same_3x3), _same_3x3, _same_3x3)
_along = _on_cpu(functools.partial(_folded, convolution=_by_rows), _upsampled)
_fast_upsampled = _bilinear(_on_cpu(_quickly_folded, _upsampled), _along, _along)
