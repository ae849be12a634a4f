"""How a gradient becomes a step, and how any optax transformation becomes a sampler.

The denoiser's answer gives three gradients of the same direction and different length, `eps`,
`residual = sigma eps` and `-score = eps / sigma`. A transformation with memory, or one that
normalizes, gives another result for each, so the choice (the reading) is always explicit. This file
owns the readings, the rules for how far a step goes along a direction, the per-sample wrapping, and
`from_transformation` and `from_optimizer`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.keys import own_keys
from optdiff.types import Sampler, Samples, Sigma, expand

Reading = Callable[[Sigma], Array]
"""`reading(sigma)`: what eps is multiplied by to give the gradient that is read."""

StepRule = Callable[[Reading, Sigma, Sigma], Array]
"""`rule(reading, sigma, sigma_next)`: how far to go along a descent direction."""


def eps(sigma: Sigma) -> Array:
    """Read `eps = (x - D) / sigma`, whose mean square is about 1 where there is much noise."""
    return jnp.ones_like(sigma)


def residual(sigma: Sigma) -> Array:
    """Read `x - D = sigma eps`, the gradient of half the squared smoothed distance to the data
    (arXiv 2306.04848, section 3): in proportion to the noise."""
    return jnp.asarray(sigma)


def score(sigma: Sigma) -> Array:
    """Read `-score = eps / sigma`, the gradient of `-log p_sigma`: in inverse proportion to the
    noise. Its sign is that of the other readings: descent leads to the data."""
    return 1.0 / jnp.asarray(sigma)


def anneal(reading: Reading, sigma: Sigma, sigma_next: Sigma) -> Array:
    """`(sigma - sigma_next) / reading(sigma)`: along the gradient itself, in any reading, it takes
    the noise from sigma to sigma_next, which is DDIM."""
    return (sigma - sigma_next) / reading(sigma)


def constant(reading: Reading, sigma: Sigma, sigma_next: Sigma) -> Array:
    """1: the optimizer's learning rate alone says how far a step goes, and the levels do not."""
    return jnp.ones_like(sigma)


def scale_by_sigma_step(rule: StepRule = anneal, reading: Reading = eps) -> Sampler:
    """Turn a descent direction into the move `dx = -rule(reading, sigma, sigma_next) direction`.

    The integrator that ends a chain of field links. With the defaults it is DDIM
    (arXiv 2010.02502, eq. 12 with zero noise), which is Euler in sigma:
    `dx = -(sigma - sigma_next) eps`.

    Args:
      rule: `anneal` or `constant`.
      reading: the reading in which the direction comes.

    >>> sampler = scale_by_sigma_step()
    >>> x = jnp.ones((1, 2))
    >>> levels = dict(sigma=jnp.array(3.0), sigma_next=jnp.array(1.0))
    >>> dx, _ = sampler.update(x, sampler.init(x), x, **levels)
    >>> dx.tolist()
    [[-2.0, -2.0]]
    """

    def update(direction, state, x=None, *, sigma, sigma_next, **unused):
        step = expand(rule(reading, sigma, sigma_next), direction)
        return (-step * direction).astype(direction.dtype), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_reading(reading: Reading) -> Sampler:
    """Link: hand the next transformation the gradient in this reading, `reading(sigma) eps`."""

    def update(eps, state, x=None, *, sigma, **unused):
        return (expand(reading(sigma), eps) * eps).astype(eps.dtype), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def per_sample(tx: optax.GradientTransformation) -> Sampler:
    """Run a transformation on every sample by itself, with a state of its own.

    Norms, trust ratios and clipping over a leaf would otherwise let samples talk to each other.
    Inside, arrays have no batch axis, levels are scalars, and `eps_fn` still evaluates the whole
    batch at once, each sample under its own condition. Our own samplers need no wrapping: they
    expect the batch axis and keep samples apart. Random keys that a transformation keeps in its
    state (`optax.add_noise`) are mixed with each sample's own, so that noise differs by sample and
    by seed.

    >>> x = jnp.array([[0.0, 4.0], [2.0, 0.0]])
    >>> tx = per_sample(optax.normalize_by_update_norm())
    >>> keys = jax.vmap(jax.random.key)(jnp.arange(2))
    >>> levels = dict(sigma=jnp.array(1.0), sigma_next=jnp.array(0.5), steps_left=1)
    >>> tx.update(x, tx.init(x), x, key=keys, eps_fn=None, **levels)[0].round(3).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    tx = optax.with_extra_args_support(tx)

    def init(x):
        return jax.vmap(tx.init)(_wide(x))

    def update(updates, state, x, *, sigma, sigma_next, steps_left, key, eps_fn):
        batch_eps_fn = _batched(lambda y, sigma: _wide(eps_fn(y.astype(x.dtype), sigma)))
        levels = jnp.broadcast_to(sigma, x.shape[:1]), jnp.broadcast_to(sigma_next, x.shape[:1])

        def one(updates, state, x, sigma, sigma_next, key):
            return tx.update(
                updates,
                own_keys(state, key),
                x,
                sigma=sigma,
                sigma_next=sigma_next,
                steps_left=steps_left,
                key=key,
                eps_fn=batch_eps_fn,
            )

        out, state = jax.vmap(one)(_wide(updates), state, _wide(x), *levels, key)
        return out.astype(updates.dtype), state

    return optax.GradientTransformationExtraArgs(init, update)


def whole_batch(tx: optax.GradientTransformation) -> Sampler:
    """Run a transformation on the batch as one array: the same thing for elementwise ones."""
    return optax.with_extra_args_support(tx)


def from_transformation(
    transformation: optax.GradientTransformation,
    *,
    reading: Reading = eps,
    rule: StepRule = anneal,
    wrap: Callable[[optax.GradientTransformation], Sampler] = per_sample,
) -> Sampler:
    """Make a sampler of an optax primitive, which maps gradients to descent-positive directions:
    `dx = -rule(reading, sigma, sigma_next) transformation(reading(sigma) eps)`.

    Running is not converging: a transformation that loses the gradient's length (sign, Adam)
    leaves the annealed path, and its samples show it.

    Args:
      transformation: any `optax.scale_by_*`, `trace`, `clip_by_*`, or a chain of them.
      reading: the gradient it sees: `eps`, `residual` or `score`.
      rule: `anneal` (the levels say how far) or `constant`.
      wrap: `per_sample`, or `whole_batch` for elementwise transformations.

    >>> heavy = from_transformation(optax.trace(decay=0.5), reading=residual)
    """
    return optax.chain(
        scale_by_reading(reading), wrap(transformation), scale_by_sigma_step(rule, reading)
    )


def from_optimizer(
    optimizer: optax.GradientTransformation,
    *,
    reading: Reading = eps,
    rule: StepRule = anneal,
    wrap: Callable[[optax.GradientTransformation], Sampler] = per_sample,
) -> Sampler:
    """Make a sampler of an optax alias, whose updates already carry `-learning_rate`; they are
    turned round first. Under `anneal` the learning rate multiplies the annealed step, and
    `optax.sgd(1.0)` is DDIM; under `constant` it is the step.

    Args: as `from_transformation`.

    >>> lion = from_optimizer(optax.lion(learning_rate=0.5))
    """
    turned = optax.chain(optimizer, optax.scale(-1.0))
    return from_transformation(turned, reading=reading, rule=rule, wrap=wrap)


def weighted_sum(*terms: tuple[Float[Array, "..."], Samples]) -> Samples:
    """Sum of coefficient times field, `sum_j c_j f_j`, in the dtype of the first field.

    Coefficients are () or (b,) and keep their own precision until the sum is rounded.
    """
    total = sum(expand(c, field) * field for c, field in terms)
    return total.astype(terms[0][1].dtype)


def _wide(x: Samples) -> Samples:
    """In float32 at least: norms and moments overflow float16, and in bfloat16 they stand still."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _batched(eps_fn: Callable[[Samples, Sigma], Samples] | None) -> Callable[..., Any]:
    """`eps_fn` for use inside a vmap over samples, where one call evaluates the whole batch: for
    transformations that evaluate again, as `per_sample(heun())` or a line search does."""

    @jax.custom_batching.custom_vmap
    def one(x, sigma):
        return x  # gives the shape; under the vmap of `per_sample` only the rule below runs

    @one.def_vmap
    def every(axis_size, in_batched, x, sigma):
        x_batched, _ = in_batched
        x = x if x_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        return eps_fn(x, sigma), True

    return one
