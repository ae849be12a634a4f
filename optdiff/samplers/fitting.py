"""What optax's optimizers need to fit, besides reading, rule and wrapping (`directions`).

A unit of length for those that normalize, matrices for Muon, a read-out for those whose answer is
not their last iterate, safety where they divide by zero, and hyperparameters that follow the level.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from optdiff.types import Sampler, within


def scale_by_root_size() -> optax.GradientTransformation:
    """Multiply by `sqrt(d)`, the length of unit noise in d coordinates.

    Put behind a transformation whose updates have unit length, it gives them unit mean square,
    which is what a direction for `anneal` should have at high noise. For use in `per_sample`.

    >>> unit = optax.chain(optax.normalize_by_update_norm(), scale_by_root_size())
    >>> u, _ = unit.update(jnp.array([3.0, -4.0]), unit.init(jnp.zeros(2)))
    >>> float(jnp.mean(u**2).round(3))
    1.0
    """
    return optax.stateless(lambda updates, params: updates * jnp.sqrt(float(updates.size)))


def image_axes(sample: Array | optax.MaskedNode) -> optax.contrib.MuonDimensionNumbers | None:
    """Where Muon finds matrices in a sample: height by width, channel by channel.

    A vector has none, and `optax.contrib.muon` leaves it to Adam. Its own default leaves (h, w, c)
    to Adam too.

    >>> image_axes(jnp.zeros((8, 8, 4)))
    MuonDimensionNumbers(reduction_axis=0, output_axis=1)
    """
    # Muon also asks about leaves that it has masked out, which have no dimensions.
    matrices = getattr(sample, "ndim", 0) > 1
    return optax.contrib.MuonDimensionNumbers(0, 1) if matrices else None


def with_read_out(
    optimizer: optax.GradientTransformation, read_out: Callable[[PyTree, PyTree], PyTree]
) -> Sampler:
    """An optimizer whose answer is `read_out(state, x)` and not its last iterate: on the last step
    it goes there. For `from_optimizer` under `constant`, where its updates are the steps. A sample
    that a clock stops before the driver's last step stays at its iterate.

    Args:
      optimizer: for example `optax.contrib.schedule_free_sgd`.
      read_out: from its state and the iterate, for example
        `optax.contrib.schedule_free_eval_params`.

    >>> averaged = with_read_out(
    ...     optax.contrib.schedule_free_sgd(0.5), optax.contrib.schedule_free_eval_params
    ... )
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, x, *, steps_left, **extra):
        updates, state = optimizer.update(updates, state, x, steps_left=steps_left, **extra)
        answer = read_out(state, optax.apply_updates(x, updates))
        last = jnp.asarray(steps_left) == 1
        return jax.tree.map(
            lambda u, a, p: jnp.where(last, a - p, u).astype(u.dtype), updates, answer, x
        ), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def unless_at_rest(optimizer: optax.GradientTransformation) -> Sampler:
    """An optimizer that stays as it is while the gradient is zero, for those that divide by it.

    >>> guarded = unless_at_rest(optax.contrib.prodigy())
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, x, **extra):
        moves = optax.tree.norm(updates, ord=1) > 0
        new = optimizer.update(updates, state, x, **extra)
        old = (optax.tree.zeros_like(updates), state)
        return jax.tree.map(lambda a, b: jnp.where(moves, a, b).astype(b.dtype), new, old)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


@within(by="(0, inf)")
def begin_beside(optimizer: optax.GradientTransformation, by: float = 1e-3) -> Sampler:
    """An optimizer that measures its distance from the start, told a start a little beside it: at
    the start itself a distance has no gradient, and the levels' and the weights' would be lost.

    >>> distance = begin_beside(optax.contrib.dog())
    """

    def init(x):
        return optimizer.init(jax.tree.map(lambda p: p + by, x))

    return optax.GradientTransformationExtraArgs(
        init, optax.with_extra_args_support(optimizer).update
    )


def by_level(make: Callable[..., optax.GradientTransformation], **hyperparameters: Any) -> Sampler:
    """A sampler or a transformation whose hyperparameters follow the noise level: at each step it
    is `make(**hyperparameters)`, with each that is callable called on sigma.

    Over steps there is nothing to do, since optax takes schedules for most hyperparameters; and any
    of optax's schedules serves here too, with the noise level in the place of the count of steps.
    A level per sample makes a hyperparameter per sample, for our own samplers; optax's belong in
    `per_sample`, where a level is one number.

    Args:
      make: builds the sampler, whose state must not depend on these hyperparameters.
      hyperparameters: numbers, or functions of sigma.

    >>> averaging_above_extrapolating_below = optax.linear_schedule(-0.3, 0.5, transition_steps=10)
    >>> from optdiff.samplers import momentum
    >>> sampler = by_level(momentum, beta=averaging_above_extrapolating_below)
    """

    def at(sigma):
        return optax.with_extra_args_support(
            make(**{name: h(sigma) if callable(h) else h for name, h in hyperparameters.items()})
        )

    def init(x):
        return at(jnp.ones(())).init(x)

    def update(eps, state, x, *, sigma, **extra):
        dx, new = at(sigma).update(eps, state, x, sigma=sigma, **extra)
        # Levels are wider than bfloat16 samples, and would widen what the state remembers.
        return dx, jax.tree.map(lambda a, old: jnp.asarray(a, jnp.result_type(old)), new, state)

    return optax.GradientTransformationExtraArgs(init, update)
