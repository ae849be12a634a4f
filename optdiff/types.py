"""The words every room shares: shapes, protocols, and the meaning of a noise level.

Everything runs in sigma-coordinates, `x = x0 + sigma * n` with `n ~ N(0, I)`. This file owns the
types that cross room borders, what a gradient says of the data (`data_prediction`), and how
constructors refuse arguments (`within`). It imports nothing of optdiff.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Samples = Float[Array, "b ..."]
"""A batch of iterates or images; the first axis counts samples, which never talk to each other."""

Keys = Key[Array, "b"]
"""One random key per sample, `fold_in(key, global sample index)`."""

Sigma = Float[Array, ""] | Float[Array, "b"]
"""A noise level, in units of the data: one for the batch, or one per sample."""

Levels = Float[Array, "n"]
"""Noise levels sigma_0 > sigma_1 > ... > 0 at which the denoiser is evaluated."""

SAME_LEVEL = 1e-5
"""How close two levels are, relatively, to be the same one; float32 keeps 1e-7."""

Cond = PyTree[Any]
"""What a sample is conditioned on: a pytree whose leaves have the batch first, or None."""

Sampler = optax.GradientTransformationExtraArgs
"""`init(x) -> state` and
`update(eps, state, x, *, sigma, sigma_next, steps_left, key, eps_fn) -> (dx, state)`.

`eps` was taken at `x` and `x + dx` is the next iterate. `steps_left` counts this step, so it is 1
on the last one. `key` is one key per sample. `eps_fn(x, sigma) -> eps` evaluates the denoiser
again, and each call is counted.
"""


class NoiseSchedule(NamedTuple):
    """The noise levels a model was trained on: sigma(t), its inverse, and the range they span.

    `t(sigma)` is the number by which the model is told the level sigma: a timestep from 0 to 999 in
    most, from 0 to 1 in flow models. It rises with sigma. A schedule is hashable, so that problems
    carry it as static data; `sigma_max` may be infinite (zero terminal SNR, flow models), and then
    grids need a cap.
    """

    sigma: Callable[[Array], Array]
    t: Callable[[Array], Array]
    sigma_min: float
    sigma_max: float


class Step(NamedTuple):
    """What an observer sees of a step: `eps` was taken at `x`, and `x_next` is where it led."""

    i: Int[Array, ""]
    x: Samples
    eps: Samples
    sigma: Sigma
    sigma_next: Sigma
    x_next: Samples


EpsFn = Callable[[Samples, Sigma], Samples]
"""`eps_fn(x, sigma)`: the gradient, the unit-noise direction `(x - D(x, sigma)) / sigma`."""

Ending = Callable[[EpsFn, Samples, Sigma, Callable[[Samples, Sigma], Samples]], Samples]
"""`finish(eps_fn, x, sigma, update) -> x0`: from the last level to a sample.

`update(eps, sigma_next) -> dx` is the sampler's own update from there, with what it remembers; no
steps are left then (`steps_left` is 0), which lowers an order once more."""


class Clock(NamedTuple):
    """Where the next level comes from.

    `init(x) -> (sigma, state)` and `next(state, x, eps, i) -> (sigma_next, go, state)`, where
    levels are () or (b,), and `judge(state, step) -> (accept, state)` looks at the move that was
    made. `go` and `accept` are None (all) or (b,) booleans: a sample that waits or is refused stays
    where it was, at its level, with its sampler state (whose leaves must then have the batch first,
    as those of our own samplers have, and those of any transformation wrapped `per_sample`). A step
    refused was paid for; one that was never taken was not.
    """

    init: Callable[[Samples], tuple[Sigma, PyTree]]
    next: Callable[[PyTree, Samples, Samples, Any], tuple[Sigma, Any, PyTree]]
    judge: Callable[[PyTree, Step], tuple[Any, PyTree]] = lambda state, step: (None, state)


Grid = Callable[[NoiseSchedule, int], Levels]
"""n noise levels of a schedule, decreasing."""

Batch = Mapping[str, Array | np.ndarray]
"""Examples to learn from: arrays with the batch first, this process's rows of it."""


class Stream(NamedTuple):
    """Data to learn from, as a function: `batch, position = read(position)`, from `start` on.

    A position is plain data (numbers, lists and dicts of them, as JSON has them) and says all about
    where the stream stands: to resume is to read from a position that was kept. Each process of
    several has a stream of its own, which reads its share of every batch.
    """

    start: Any
    read: Callable[[Any], tuple[Batch, Any]]


@runtime_checkable
class Problem(Protocol):
    """What samplers are compared on. A pytree: weights are leaves, so jit takes them as arguments.

    Two optional methods: `target(keys, cond)` draws from the exact distribution that a perfect
    sampler would produce (where it is known it gives metrics their floor), and `passes` is the
    number of network passes one evaluation costs (1 if absent; 2 under guidance).
    """

    schedule: NoiseSchedule

    def condition(self, keys: Keys) -> Cond:
        """One condition per sample, or None for an unconditional problem."""

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """Where sampling starts: draws of `x0 + sigma * n`, the exact marginal where known."""

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """`D(x, sigma)`, the estimate of E[x0 given x]."""

    def decode(self, x0: Samples) -> Samples:
        """Images from samples; the identity where there are no latents."""

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        """What good samples look like, decoded: real data where there is any."""


def expand(scalar: Array, x: Samples) -> Array:
    """Shape a level (or any coefficient), () or (b,), to broadcast against samples (b, ...).

    >>> expand(jnp.ones(3), jnp.zeros((3, 8, 8))).shape
    (3, 1, 1)
    """
    scalar = jnp.asarray(scalar)
    return scalar.reshape(scalar.shape + (1,) * (x.ndim - 1)) if scalar.ndim else scalar


def level_at(levels: Float[Array, "n ..."], i: Any) -> Sigma:
    """Level i, of all samples or of each. By NumPy where everything is known, as in host mode:
    indexing by JAX would compile for every other number of levels.

    >>> level_at(jnp.array([3.0, 1.0]), -1).item()
    1.0
    """
    known = not isinstance(levels, jax.core.Tracer) and not isinstance(i, jax.core.Tracer)
    return jnp.asarray(np.asarray(levels)[i]) if known else levels[i]


def data_prediction(x: Samples, eps: Samples, sigma: Sigma) -> Samples:
    """`D = x - sigma eps`, what the gradient at x says of the data, in the type of x.

    >>> data_prediction(jnp.array([[3.0]]), jnp.array([[1.0]]), jnp.array(2.0)).item()
    1.0
    """
    return (x - expand(sigma, x) * eps).astype(x.dtype)


def within(**ranges: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a constructor so that it refuses arguments outside of these ranges.

    Args:
      ranges: by parameter, as in mathematics: "(-1, 1)", "[0, inf)". NaN is in none of them. What
        is being traced passes, and None where it is the default. A parameter annotated int takes
        whole numbers alone.

    Raises:
      ValueError: when the decorated function is called, for a value that is no number or outside.

    >>> within(beta="(-1, 1)")(lambda beta: beta)(5)
    Traceback (most recent call last):
    ValueError: beta = 5 is not in (-1, 1)
    """

    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args, **kwargs):
            arguments = signature.bind_partial(*args, **kwargs).arguments
            for name in ranges.keys() & arguments.keys():
                parameter, value = signature.parameters[name], arguments[name]
                if value is None and parameter.default is not None:
                    raise ValueError(f"{name} = None is no number; it is in {ranges[name]}")
                whole = parameter.annotation in (int, int | None)
                check_range(name, value, ranges[name], whole=whole)
            return function(*args, **kwargs)

        checked.ranges = ranges
        return checked

    return decorate


def check_range(name: str, value: Any, allowed: str, *, whole: bool = False) -> None:
    """Raise ValueError unless a number, or all of an array, is in a range, and whole if it is to
    be; see `within`. None passes."""
    if value is None or isinstance(value, jax.core.Tracer):
        return
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or np.asarray(value).dtype.kind in "bSU":  # numpy reads true and "0.5" too
        raise ValueError(f"{name} = {value!r} is no number; it is in {allowed}")
    low, high = (float(end) for end in allowed[1:-1].split(","))
    above = numbers >= low if allowed[0] == "[" else numbers > low
    below = numbers <= high if allowed[-1] == "]" else numbers < high
    if not (above & below).all():
        raise ValueError(f"{name} = {value!r} is not in {allowed}")
    if whole and (numbers % 1 != 0).any():
        raise ValueError(f"{name} = {value!r} is no whole number")
