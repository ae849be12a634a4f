"""Linear multistep methods: combine this field with the ones remembered.

This file owns what they remember (`History`), the weights of a polynomial through it, and the
methods whose weights are constant. Those whose weights follow the steps have files of their own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import scale_by_sigma_step, weighted_sum
from optdiff.types import Sampler, Samples, Sigma, within


class History(NamedTuple):
    """Fields of the steps before, newest first, and the levels they were taken at.

    `count` fields were ever remembered; where they are fewer than there is room for, the last
    places are empty.
    """

    count: Int[Array, "b"]
    fields: tuple[Samples, ...]
    sigmas: tuple[Float[Array, "b"], ...]

    @classmethod
    def empty(cls, x: Samples, room: int) -> "History":
        """Room for so many fields. An empty place has some level, so that its logarithm exists."""
        zeros = tuple(jnp.zeros_like(x) for _ in range(room))
        ones = tuple(jnp.ones(x.shape[0]) for _ in range(room))
        return cls(jnp.zeros(x.shape[0], jnp.int32), zeros, ones)

    def and_now(self, field: Samples, sigma: Sigma) -> "History":
        """With one field more than there is room for."""
        sigma = jnp.broadcast_to(sigma, self.count.shape).astype(jnp.zeros(()).dtype)
        return History(self.count + 1, (field, *self.fields), (sigma, *self.sigmas))

    def but_the_oldest(self) -> "History":
        """What the next step remembers of `and_now`."""
        return History(self.count, self.fields[:-1], self.sigmas[:-1])


@within(order="[0, inf)", final_order="[1, inf)", lower_below="[1, inf)")
def order_of_step(
    order: int, final_order: int | None = None, lower_below: int | None = None
) -> Callable[[Int[Array, "b"], int | Int[Array, ""]], Int[Array, "b"]]:
    """`at(count, steps_left)`: how many of the last fields a step uses, itself the `count`-th. Up
    to `order`, fewer while the history fills; and towards the end, if that is asked for.

    Args:
      final_order: at most this on the last step, one more on the step before, and so on. None does
        not lower.
      lower_below: lower only in runs of fewer levels than this. None: in all.

    Raises:
      ValueError: if a bound is below 1, or a number is not whole.

    >>> at = order_of_step(3, final_order=1)
    >>> [at(jnp.array(taken), 5 - taken).item() for taken in (1, 2, 3, 4, 5)]
    [1, 2, 2, 1, 1]
    """

    def at(count, steps_left):
        reached = jnp.minimum(count, order)
        if final_order is None:
            return reached
        # An ending by the sampler's own step has no steps left; an order of 0 would be no step.
        lowered = jnp.minimum(reached, jnp.maximum(final_order + steps_left - 1, 1))
        if lower_below is None:
            return lowered
        return jnp.where(count + steps_left < lower_below, lowered, reached)

    return at


def gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre on [0, 1], exact for polynomials of degree 2 count - 1.

    >>> [array.round(4).tolist() for array in gauss(2)]
    [[0.2113, 0.7887], [0.5, 0.5]]
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


@jax.jit  # a hundred operations on a few numbers, which one by one would cost more than they do
def polynomial_weights(
    nodes: Sequence[Array | float],
    moments: Sequence[Array | float],
    order: int | Int[Array, ""] | Int[Array, "b"],
) -> Float[Array, "nodes ..."]:
    """Weights `w` such that `sum_j w_j f(s_j)` is the integral of `kernel(s) p(s)`, where `p` is
    the polynomial through `f` at the first `order` nodes; zero for the other nodes.

    In Newton's form, term by term: a term whose nodes are not all distinct says nothing and is left
    out, which lowers the order where levels repeat; so is one whose nodes are so close beside the
    step that it would magnify the rounding of f to the size of f, and so are those after it.

    Args:
      nodes: `s_j`, the first ones first; each () or (b,).
      moments: integrals of `kernel(s) s^k`, k = 0, 1, ...; as many as there are nodes.
      order: how many nodes count, for all samples or for each.

    >>> polynomial_weights([0.0, -1.0], [1.0, 0.5], 2).tolist()
    [1.5, -0.5]
    """
    n = len(nodes)
    *values, order = jnp.broadcast_arrays(*nodes, *moments[:n], order)
    s, moments = jnp.stack(values[:n]), jnp.stack(values[n:])
    axes, index = (1,) * order.ndim, np.arange(n)
    # Tables over (term, node, ...): term k is an integral times `sum_j f_j / gaps_kj`, j up to k.
    integrals, gaps = _newton_integrals(s, moments)[:, None], _gaps(s)
    present = np.tri(n, dtype=bool).reshape(n, n, *axes)
    rounding = jnp.abs(integrals) * jnp.finfo(gaps.dtype).eps
    sound = (gaps != 0) & (rounding <= jnp.abs(moments[:1][None] * gaps))
    sound = jnp.cumprod(jnp.all(sound | ~present, axis=1), axis=0) > 0  # this term and all before
    wanted = index.reshape(n, *axes) < order[None]
    counts = present & (sound & wanted)[:, None]
    return jnp.sum(jnp.where(counts, integrals / jnp.where(counts, gaps, 1.0), 0.0), axis=0)


def _newton_integrals(s: Array, moments: Array) -> Float[Array, "term ..."]:
    """Integrals of `kernel(s) prod_{j < k} (s - s_j)`, for k below the number of nodes."""
    polynomial = jnp.zeros_like(s).at[0].set(1.0)  # the product's coefficients of s^0, s^1, ...
    integrals = []
    for node in s:
        integrals.append(jnp.sum(polynomial * moments, axis=0))
        times_s = jnp.concatenate([jnp.zeros_like(s[:1]), polynomial[:-1]])
        polynomial = times_s - node[None] * polynomial
    return jnp.stack(integrals)


def _gaps(s: Array) -> Float[Array, "term node ..."]:
    """`prod_{i <= k, i != j} (s_j - s_i)`: f_j is divided by it in the k-th divided difference."""
    index = np.arange(len(s))
    gaps = jnp.ones_like(s)[None]
    for i, node in enumerate(s):
        among = (i <= index)[:, None] & (i != index)[None]
        among = among.reshape(*among.shape, *(1,) * node.ndim)
        gaps = gaps * jnp.where(among, (s - node[None])[None], 1.0)
    return gaps


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Constant-step weights over (eps_n, eps_{n-1}, ...) for orders 1 to 4."""


class ScaleByAdamsBashforthState(NamedTuple):
    """The gradients before this one, newest first; `count` steps taken."""

    count: Int[Array, "b"]
    history: tuple[Samples, ...]


def scale_by_adams_bashforth(order: int = 4) -> Sampler:
    """Link: the constant-step Adams-Bashforth combination of the last `order` gradients.

    Lower orders serve while the history fills. Args and errors as `ipndm`.
    """
    if order not in range(1, len(ADAMS_BASHFORTH) + 1):
        raise ValueError(f"order is 1 to {len(ADAMS_BASHFORTH)}, not {order}")
    table = jnp.array([w + (0.0,) * (order - len(w)) for w in ADAMS_BASHFORTH[:order]])

    def init(x):
        return ScaleByAdamsBashforthState(
            jnp.zeros(x.shape[0], jnp.int32), tuple(jnp.zeros_like(x) for _ in range(order - 1))
        )

    def update(eps, state, x=None, **unused):
        weights = table[jnp.minimum(state.count, order - 1)].T  # (order, b)
        past = (eps, *state.history)
        direction = weighted_sum(*zip(weights, past, strict=True))
        return direction, ScaleByAdamsBashforthState(state.count + 1, past[:-1])

    return optax.GradientTransformationExtraArgs(init, update)


def ipndm(order: int = 4) -> Sampler:
    """iPNDM (arXiv 2204.13902, eq. 16; the multistep of PNDM, 2202.09778, without its
    Runge-Kutta start): Adams-Bashforth over eps with the weights of constant steps,

    `x' = x - (sigma - sigma') (55 eps_n - 59 eps_{n-1} + 37 eps_{n-2} - 9 eps_{n-3}) / 24`

    at order 4. One evaluation per step; linear. The weights have the stated order on levels uniform
    in sigma, order 2 where neighbouring steps become alike as n grows (Karras, geometric), and
    order 1 where they do not; the first steps, of lower order, leave an error of second order in
    any case. In practice better than the variable-step form. diffusers takes the step to zero by
    the same rule: `finish=step_to_zero`.

    Args:
      order: 1 (DDIM) to 4.

    Raises:
      ValueError: for another order.

    >>> sampler = ipndm(order=3)
    """
    return optax.chain(scale_by_adams_bashforth(order), scale_by_sigma_step())


class ScaleByGradientEstimationState(NamedTuple):
    """The gradient before this one; `count` steps taken."""

    count: Int[Array, "b"]
    previous: Samples


@within(gamma="(-inf, inf)")
def scale_by_gradient_estimation(gamma: float | Float[Array, ""] = 2.0) -> Sampler:
    """Link: `gamma eps_n + (1 - gamma) eps_{n-1}`, and plain `eps_0` first."""

    def init(x):
        count = jnp.zeros(x.shape[0], jnp.int32)
        return ScaleByGradientEstimationState(count, jnp.zeros_like(x))

    def update(eps, state, x=None, **unused):
        g = jnp.where(state.count == 0, 1.0, gamma)
        direction = weighted_sum((g, eps), (1.0 - g, state.previous))
        return direction, ScaleByGradientEstimationState(state.count + 1, eps)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_estimation(gamma: float | Float[Array, ""] = 2.0) -> Sampler:
    """The gradient-estimation sampler (arXiv 2306.04848, algorithm 2): `x' = x - (sigma - sigma')
    (gamma eps_n + (1 - gamma) eps_{n-1})`, the first step plain.

    It is optimistic gradient descent. The authors take the step to zero by the same rule:
    `finish=step_to_zero`. One evaluation per step; linear. On smooth grids (uniform in
    sigma, Karras) its leading error is `3 - 2 gamma` times DDIM's: gone at 1.5, of opposite sign
    at 2.

    Args:
      gamma: 1 is DDIM, 1.5 is Adams-Bashforth 2; the paper uses 2.

    >>> sampler = gradient_estimation(gamma=2.0)
    """
    return optax.chain(scale_by_gradient_estimation(gamma), scale_by_sigma_step())
