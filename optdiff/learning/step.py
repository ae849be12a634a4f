"""One step of learning, on devices: gradient, update, average, and the refusal of what is not
finite.

This file owns the state and the arithmetic. The loop around them, files and signals live in
`loop.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from optdiff.keys import seed_key
from optdiff.learning.layouts import Layout, shardings
from optdiff.learning.task import Loss


class State(NamedTuple):
    """All that learning carries from step to step, beside where the stream stands. A pytree.

    Attributes:
      step: updates made so far.
      params: the parameters.
      opt_state: the optimizer's.
      ema: the average of the parameters, which is what one samples with.
      key: the base key; step i draws from `fold_in(key, i)`.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    key: Key[Array, ""]


Advance = Callable[..., tuple[State, Bool[Array, ""], dict[str, Float[Array, "n"]]]]
"""`advance(state, good, frozen, batches) -> (state, good, metrics of each step)`. The state goes in
for good: its memory is used again."""


def ema_decay(decay: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """The decay of the average at this step, warmed up from 1/10.

    `d_t = min(decay, (1 + t) / (10 + t))`, the rule of TensorFlow's ExponentialMovingAverage with
    `num_updates`, so that the average forgets where it started; then
    `ema <- d_t ema + (1 - d_t) params`. A decay of 0 keeps no average: ema is params.

    >>> [round(float(ema_decay(0.99, jnp.array(t))), 2) for t in (0, 10, 10_000)]
    [0.1, 0.55, 0.99]
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def initial_state(
    params: PyTree, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, layout: Layout
) -> State:
    """The state before the first step, in memory of its own, laid out on the mesh."""

    def initial(params, key):
        copy = lambda: jax.tree.map(jnp.copy, params)  # noqa: E731
        step, key = jnp.zeros((), jnp.int32), jax.random.wrap_key_data(key)
        return State(step, copy(), optimizer.init(params), copy(), key)

    # From the host, so that each process of several brings the same numbers for all.
    params, key = jax.device_get(params), jax.random.key_data(seed_key(seed))
    places = shardings(layout, mesh, jax.eval_shape(initial, params, key))
    return jax.jit(initial, out_shardings=places)(params, np.asarray(key))


def step_function(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    decay: float,
    mesh: Mesh,
    places: PyTree,
) -> Advance:
    """Compile the step. Several steps in a call are a scan over stacked batches.

    With `g` the mean over a step's parts of the gradient of the loss, a step is
    `params <- params + optimizer(g)`. Weights are gathered before the loss and gradients scattered
    after it where the layout is sharded; the loss sees whole weights and the whole batch. A step
    whose loss, gradient or update is not finite leaves the state as it was, and so do all after it.

    Args:
      loss: what to minimize.
      optimizer: takes the gradient, and `value`, `grad` and `value_fn` if it asks for them.
      decay: of the average, see `ema_decay`.
      mesh: the devices.
      places: shardings of the state.

    Returns:
      The compiled `Advance`; batches have leaves (steps, parts, rows, ...). The metrics are the
      loss's own, averaged over the parts, with `loss` and `grad_norm`, the global norm.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    whole = NamedSharding(mesh, PartitionSpec())
    gradient = partial(_gradient, loss, whole, places.params)
    update = partial(_update, optimizer, decay)

    def body(frozen, carry, batch):
        state, good = carry
        value_fn, value, metrics, grad = gradient(state, frozen, batch)
        state, good, norm = update(state, good, value_fn, value, grad)
        metrics = {"loss": value, "grad_norm": norm, **metrics}
        return (state, good), jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    def advance(state, good, frozen, batches):
        step, carry = partial(body, frozen), (state, good)
        # One step is no scan: XLA's CPU programs are slower inside loops.
        if len(jax.tree.leaves(batches)[0]) == 1:
            carry, metrics = step(carry, jax.tree.map(lambda x: x[0], batches))
            return *carry, jax.tree.map(lambda x: x[None], metrics)
        carry, metrics = jax.lax.scan(step, carry, batches)
        return *carry, metrics

    return jax.jit(advance, donate_argnums=0, out_shardings=(places, whole, whole))


def _gradient(loss, whole, places, state, frozen, batch):
    """The loss of a step as a function of the parameters, its value and metrics, its gradient."""
    key = jax.random.fold_in(state.key, state.step)
    params = jax.lax.with_sharding_constraint(state.params, whole)
    of_part = jax.value_and_grad(loss, has_aux=True)
    (value, metrics), grad = _over_parts(
        lambda part, key: of_part(params, frozen, part, key), batch, key
    )

    def value_fn(params):
        return _over_parts(lambda part, key: loss(params, frozen, part, key)[0], batch, key)

    return value_fn, value, metrics, jax.lax.with_sharding_constraint(grad, places)


def _update(optimizer, decay, state, good, value_fn, value, grad):
    """The state after a step if all was well and is, else as it was; whether it is; the norm."""
    dparams, opt_state = optimizer.update(
        grad, state.opt_state, state.params, value=value, grad=grad, value_fn=value_fn
    )
    norm = optax.tree.norm(grad)
    good &= jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(dparams))
    params = optax.apply_updates(state.params, dparams)
    ema = params
    if decay:  # with 0 the sum below rounds by itself, where XLA fuses the update into it
        d = ema_decay(decay, state.step)
        ema = jax.tree.map(lambda e, p: p + d.astype(p.dtype) * (e - p), state.ema, params)
    new = State(state.step + 1, params, opt_state, ema, state.key)
    return jax.tree.map(lambda a, b: _where(good, a, b), new, state), good, norm


def _over_parts(function, batch, key):
    """The mean of `function(part, key)` over the parts (parts, rows, ...) of a batch, one by one.

    So parts save memory: what one of them needed is free before the next.
    """
    first = jax.tree.map(lambda x: x[0], batch)
    parts = len(jax.tree.leaves(batch)[0])
    if parts == 1:
        return function(first, key)

    def add(total, item):
        i, part = item
        return jax.tree.map(jnp.add, total, function(part, jax.random.fold_in(key, i))), None

    like = jax.eval_shape(function, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), batch))
    return jax.tree.map(lambda x: x / parts, total)


def _where(good, new, old):
    """The new leaf where all is well, in the type of the old one."""
    return jnp.where(good, new if new.dtype == old.dtype else new.astype(old.dtype), old)
