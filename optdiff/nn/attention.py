"""Attention for every network: cuDNN where it fits, elsewhere XLA with the queries in chunks.

This file owns the product `softmax(q k' / sqrt(d)) v` and nothing else: projections and norms
belong to the networks. Which way it is computed is settled when a program is lowered, by platform,
so that one traced function serves CPU, GPU, TPU and `jax.export`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

# Logits formed at once. On a CPU they should stay near the cache (8 MB in float32: 512 queries
# against 4,096 keys); an accelerator wants few and large products (128 MB).
CPU_LOGITS = 2**21
ACCELERATOR_LOGITS = 2**25
# Heads of fewer logits (64 tokens have 4,096) go together on a CPU, where each alone would be too
# little work for a turn of a loop: 1.5 to 2.5 times faster, gradients included. Larger ones do not.
SMALL_HEAD = 2**16


@functools.partial(jax.jit, static_argnames=("causal", "scale"))
def attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d2"],
    *,
    mask: Bool[Array, "#b #heads #n #m"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "b n heads d2"]:
    """Scaled dot-product attention, `softmax(scale * q k') v` (arXiv 1706.03762, eq. 1).

    Logits and softmax are float32 (float64 for float64) whatever the inputs are, so there is
    nothing left for a checkpoint's `upcast_attention` to switch on. On CUDA, what cuDNN takes
    (half precision, head dims that its fused kernel knows) goes there. Everywhere else queries go
    in chunks, recomputed for the gradient, so that memory is linear in the tokens; on a CPU head
    by head too, unless heads are small, because XLA's plain two-dimensional products are several
    times faster there than its batched ones.

    Args:
      q: queries (b, n, heads, d).
      k: keys (b, m, heads, d).
      v: values (b, m, heads, d2).
      mask: True where a query may look at a key; broadcasts to (b, heads, n, m). A query that may
        look at none gets the mean of the values.
      causal: query i looks at keys 0..i only, besides what `mask` says.
      scale: factor on the logits, `1 / sqrt(d)` if None.

    Returns:
      (b, n, heads, d2) of the type of `v`.

    >>> q = jnp.ones((1, 5, 2, 8))
    >>> attention(q, q, q, causal=True).shape
    (1, 5, 2, 8)
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    cpu = functools.partial(_by_head, causal=causal, scale=scale)
    xla = functools.partial(_batched, causal=causal, scale=scale)
    fused = functools.partial(_cudnn, causal=causal, scale=scale)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (q, k, v, mask))
    cuda = fused if _cudnn_takes(*shapes, causal=causal) else xla
    return jax.lax.platform_dependent(q, k, v, mask, cpu=cpu, cuda=cuda, default=xla)


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float):
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
    )


@functools.cache
def _cudnn_takes(q, k, v, mask, *, causal: bool) -> bool:
    """Whether the fused kernel takes these shapes, forward and backward: asked, not guessed.

    JAX refuses odd numbers of queries or keys for the gradient, such as a prompt's 77 tokens.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or v.shape[-1] != q.shape[-1]:
        return False

    def loss(q, k, v, mask):
        return _cudnn(q, k, v, mask, causal=causal, scale=1.0).sum()

    try:
        jax.eval_shape(jax.grad(loss, (0, 1, 2)), q, k, v, mask)
    except RuntimeError:  # no cuDNN here, or NotImplementedError: a shape it does not know
        return False
    return True


def _by_head(q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float):
    """A few heads at a time, in float32: what a CPU is good at."""
    wide, out = _wide(q.dtype), v.dtype
    mask = _full_mask(q, k, mask, causal)
    b, n, heads, _ = q.shape

    def flat(x: Array) -> Array:  # (b, n, heads, d) -> (b*heads, n, d)
        return x.astype(wide).transpose(0, 2, 1, 3).reshape(b * heads, x.shape[1], -1)

    rows = mask if mask is None else mask.reshape(b * heads, n, -1)
    # Scaling the queries rather than the logits saves a pass over the latter.
    heads_in = (flat(q) * scale, flat(k), flat(v), rows)
    x = _over_heads(functools.partial(_in_chunks, scale=1.0, limit=CPU_LOGITS), heads_in)
    return x.reshape(b, heads, n, -1).transpose(0, 2, 1, 3).astype(out)


def _over_heads(one: Callable[..., Array], heads_in: tuple[Array | None, ...]) -> Array:
    """One head at a time, or as many small ones as may have their logits formed at once."""
    q, k = heads_in[:2]
    logits = q.shape[1] * k.shape[1]
    if logits > SMALL_HEAD:
        return jax.lax.map(lambda head: one(*head), heads_in)
    return jax.lax.map(lambda head: one(*head), heads_in, batch_size=max(1, CPU_LOGITS // logits))


def _batched(q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float):
    """All heads at once: what an accelerator is good at."""
    mask = _full_mask(q, k, mask, causal)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # (b, heads, n, d)
    return _in_chunks(q, k, v, mask, scale=scale, limit=ACCELERATOR_LOGITS).transpose(0, 2, 1, 3)


def _wide(dtype: DTypeLike) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _full_mask(q: Array, k: Array, mask: Array | None, causal: bool) -> Array | None:
    """One mask (b, heads, n, m) for both kinds, or None."""
    n, m = q.shape[1], k.shape[1]
    if causal:
        below = jnp.tri(n, m, dtype=bool)[None, None]
        mask = below if mask is None else mask & below
    return mask if mask is None else jnp.broadcast_to(mask, (q.shape[0], q.shape[2], n, m))


def _in_chunks(
    q: Array, k: Array, v: Array, mask: Array | None, *, scale: float, limit: int
) -> Array:
    """Attention of (..., n, d) over (..., m, d), about `limit` logits at a time."""
    n = q.shape[-2]
    logits = q.size // q.shape[-1] * k.shape[-2]
    pieces = min(n, -(-logits // limit))
    rows = -(-n // pieces)  # chunks of equal size, the last one padded by less than a row a chunk
    if pieces == 1:
        return _rows(q, k, v, mask, scale)

    def split(x: Array) -> Array:  # (..., n, d) -> (pieces, ..., rows, d)
        pad = [(0, 0)] * x.ndim
        pad[-2] = (0, pieces * rows - n)
        x = jnp.pad(x, pad).reshape(*x.shape[:-2], pieces, rows, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    chunk = jax.checkpoint(lambda qm: _rows(qm[0], k, v, qm[1], scale))
    out = jax.lax.map(chunk, (split(q), mask if mask is None else split(mask)))
    out = jnp.moveaxis(out, 0, -3)
    return out.reshape(*out.shape[:-3], pieces * rows, out.shape[-1])[..., :n, :]


def _rows(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> Array:
    """Attention with all the logits at once; (..., n, d), (..., m, d), (..., m, d2)."""
    wide = _wide(q.dtype)
    logits = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=wide) * scale
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(wide).min / 2)
    # Dividing by the sum after the product rather than before it saves a pass over the logits.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...nm,...md->...nd", weights.astype(v.dtype), v, preferred_element_type=wide)
    return (out / total).astype(v.dtype)
