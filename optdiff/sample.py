"""The driver: one step function, iterated from Python (`sample`) or by `lax.scan` (`sample_scan`).

A step evaluates the denoiser at the iterate, lets the clock choose the next level and the sampler
the move. The driver owns the iteration, the per-step keys and the count of evaluations; update
rules live in `samplers`, levels in `grids`. Of optdiff it knows types and keys.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from optdiff.keys import check_keys, fold_in, refuse_shared_keys
from optdiff.keys import sample_keys as sample_keys
from optdiff.types import (
    Clock,
    Cond,
    Ending,
    EpsFn,
    Keys,
    Levels,
    Problem,
    Sampler,
    Samples,
    Sigma,
    Step,
    data_prediction,
    expand,
    level_at,
)


class Trace(NamedTuple):
    """How a trajectory went.

    Attributes:
      nfe: evaluations of the denoiser that each sample needed.
      batch_nfe: evaluations of the batch that were made: more, where samples wait for others.
      finished: whether a sample came to the last level or its clock stopped it, before the steps
        ran out.
      sigma: the levels of the steps, then the last.
      observed: what `observe` returned, stacked by step.
    """

    nfe: Int[Array, "b"]
    batch_nfe: Int[Array, ""]
    finished: Bool[Array, "b"]
    sigma: Float[Array, "n ..."]
    observed: PyTree = None


class Carry(NamedTuple):
    """What one step hands to the next."""

    x: Samples
    sigma: Sigma
    nfe: Int[Array, "b"]
    sampler: PyTree
    clock: PyTree
    batch_nfe: Int[Array, ""]
    waits: Bool[Array, "b"]


def plain_clock(levels: Levels) -> Clock:
    """The clock that reads the grid: step i goes to `levels[i + 1]`, whatever the samples do."""
    step = lambda levels, x, eps, i: (level_at(levels, i + 1), None, levels)  # noqa: E731
    return Clock(lambda x: (level_at(levels, 0), levels), step)


def last_denoising(eps_fn: EpsFn, x: Samples, sigma: Sigma, update: Callable) -> Samples:
    """Finish with `x0 = D(x, sigma)`, the Euler step to zero: n levels cost n evaluations."""
    return data_prediction(x, eps_fn(x, sigma), sigma)


def step_to_zero(eps_fn: EpsFn, x: Samples, sigma: Sigma, update: Callable) -> Samples:
    """Finish with the sampler's own step to zero, at the cost of `last_denoising`, as the sources
    of `lms`, `ipndm` and `gradient_estimation` do: what is remembered counts there too.

    For samplers whose update exists at `sigma_next = 0`, which has no logarithm and at which no
    denoiser can be evaluated."""
    return x + update(eps_fn(x, sigma), jnp.zeros_like(sigma)).astype(x.dtype)


def identity(eps_fn: EpsFn, x: Samples, sigma: Sigma, update: Callable) -> Samples:
    """Finish where the last step ended, with noise of the last level still in the sample."""
    return x


def sample(
    problem: Problem,
    sampler: Sampler,
    levels: Levels,
    keys: Keys,
    *,
    cond: Cond = None,
    x: Samples | None = None,
    finish: Ending = last_denoising,
    observe: Callable[[Step], PyTree] | None = None,
    clock: Clock | None = None,
    on_step: Callable[[Step], bool | None] | None = None,
) -> tuple[Samples, Trace]:
    """Sample in host mode: a Python loop around one compiled denoiser.

    Another sampler, grid or number of steps never recompiles the network, which is compiled once
    for a problem's structure and a batch shape. Use it for sweeps and for watching; use
    `sample_scan` for throughput and for gradients.

    Args:
      problem: the denoiser and where sampling starts, see `optdiff.types.Problem`.
      sampler: the optax transformation that takes the steps.
      levels: (n,) noise levels; n - 1 steps, then `finish`.
      keys: (b,) one key per sample, see `sample_keys`.
      cond: one condition per sample, or None.
      x: (b, ...) where to start, at `levels[0]`; by default `problem.prior`.
      finish: `last_denoising` (the default), `step_to_zero` or `identity`.
      observe: maps each `Step` to a pytree, stacked in the trace.
      clock: chooses the levels instead of the grid; still at most n - 1 steps.
      on_step: called after each step (progress, previews); a true value ends the loop early.

    Returns:
      x0 of shape (b, ...) and dtype of the start, and the `Trace`.

    Raises:
      ValueError: if levels are not a positive, finite vector, keys not one for each sample, the
        problem no pytree, or the sampler one that asks for more than gradients.
      FloatingPointError: at the first step, or ending, that leaves a sample not finite; names
        step and level.

    >>> from optdiff.problems import gaussian
    >>> from optdiff.grids import karras
    >>> from optdiff.samplers import ddim
    >>> problem = gaussian(dim=2)
    >>> x0, trace = sample(problem, ddim(), karras(problem.schedule, 8), sample_keys(0, 4))
    >>> x0.shape, trace.nfe.tolist()
    ((4, 2), [8, 8, 8, 8])
    """
    loop, levels = partial(_python_loop, observe, on_step), _checked(problem, levels, keys)
    x0, trace = _sample(loop, problem, sampler, levels, keys, cond, x, finish, clock)
    _require_finite(x0, "the ending", level_at(trace.sigma, -1))
    return x0, trace


def sample_scan(
    problem: Problem,
    sampler: Sampler,
    levels: Levels,
    keys: Keys,
    *,
    cond: Cond = None,
    x: Samples | None = None,
    finish: Ending = last_denoising,
    observe: Callable[[Step], PyTree] | None = None,
    clock: Clock | None = None,
) -> tuple[Samples, Trace]:
    """Sample in scan mode: the whole trajectory is one program, one per (sampler, n).

    The same steps as `sample`, with the same arguments and results, and differentiable in the
    problem's weights, the levels, `x` and `cond`. Nothing is checked on the way: look at the
    result. Pass the same `sampler` object again to reuse its program.
    """
    levels = _checked(problem, levels, keys)
    return _compiled(problem, sampler, levels, keys, cond, x, finish, observe, clock)


def start(problem: Problem, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
    """Where `sample` starts each of these keys at this level: draws of `problem.prior`."""
    return problem.prior(fold_in(keys, 0), sigma, cond)


@jax.jit
def eps_at(problem: PyTree, cond: Cond, x: Samples, sigma: Sigma) -> Samples:
    """One evaluation of `problem.denoise` D, compiled: `eps = (x - D) / sigma`, in the type of x.

    Host mode's only network. Module-level and closed over nothing, so its cache serves everyone.

    >>> from optdiff.problems import gaussian
    >>> eps_at(gaussian(mean=[0.0], cov=[[1.0]]), None, jnp.ones((1, 1)), jnp.array(1.0)).tolist()
    [[0.5]]
    """
    residual = x - problem.denoise(x, sigma, cond)
    return (residual / expand(sigma, x)).astype(x.dtype)


def sampling_loop(
    loop: Callable[..., tuple["Carry", PyTree]],
    eps_fn: EpsFn,
    sampler: Sampler,
    clock: Clock,
    n: Any,
    keys: Keys,
    x: Samples,
    finish: Ending,
) -> tuple[Samples, "Carry", PyTree]:
    """The driver around any gradient: n - 1 steps from x, repeated by `loop`, then `finish`.

    `sample` and `sample_scan` are this with a problem's `eps_at`; analysis puts its own gradients
    in. `loop(step, carry, count)` applies `step(carry, i) -> (carry, Step)` for i below count and
    returns the last carry with whatever it collected.

    Returns:
      The samples, the last carry with their evaluations counted in, what `loop` collected.
    """
    sigma, clock_state = clock.init(x)
    step = partial(_step, eps_fn, sampler, clock, keys, n)
    state = sampler.init(x)
    refuse_shared_keys(state)
    nothing, nobody = jnp.zeros(x.shape[0], jnp.int32), jnp.zeros(x.shape[0], bool)
    carry = Carry(x, sigma, nothing, state, clock_state, jnp.zeros((), jnp.int32), nobody)
    carry, collected = loop(step, carry, n - 1)
    counter = _Counter(eps_fn)

    def update(eps, sigma_next):
        return _update(sampler, carry, eps, sigma_next, 0, fold_in(keys, n), counter)[0]

    x0 = finish(counter, carry.x, carry.sigma, update)
    nfe, batch_nfe = carry.nfe + counter.calls, carry.batch_nfe + counter.calls
    return x0, carry._replace(nfe=nfe, batch_nfe=batch_nfe), collected


def _sample(loop, problem, sampler, levels, keys, cond, x, finish, clock):
    clock = plain_clock(levels) if clock is None else clock
    x = start(problem, keys, level_at(levels, 0), cond) if x is None else x
    eps_fn, n = partial(eps_at, problem, cond), levels.shape[0]
    x0, carry, collected = sampling_loop(loop, eps_fn, sampler, clock, n, keys, x, finish)
    finished = carry.waits | (carry.sigma <= level_at(levels, -1))
    return x0, Trace(carry.nfe, carry.batch_nfe, finished, *collected)


def _step(eps_fn, sampler, clock, keys, n, carry: Carry, i) -> tuple[Carry, Step]:
    """The one step. Evaluations are counted as they are made; in a scan, as they are traced."""
    counter = _Counter(eps_fn)
    eps = counter(carry.x, carry.sigma)
    sigma_next, go, clock_state = clock.next(carry.clock, carry.x, eps, i)
    key = fold_in(keys, i + 1)
    dx, state = _update(sampler, carry, eps, sigma_next, n - 1 - i, key, counter)
    x = carry.x + dx.astype(carry.x.dtype)
    proposal = Step(i, carry.x, eps, carry.sigma, sigma_next, x)
    accept, clock_state = clock.judge(clock_state, proposal)
    after, before = (x, sigma_next, state), (carry.x, carry.sigma, carry.sampler)
    for moves in (accept, go):
        if moves is not None:
            after = jax.tree.map(partial(_where, moves), after, before)
    x, sigma, state = after
    waits = jnp.zeros_like(carry.waits) if go is None else ~go
    nfe = carry.nfe + jnp.where(waits, 0, counter.calls)
    batch_nfe = carry.batch_nfe + counter.calls
    move = proposal._replace(sigma_next=sigma, x_next=x)
    return Carry(x, sigma, nfe, state, clock_state, batch_nfe, waits), move


def _update(sampler, carry, eps, sigma_next, steps_left, key, eps_fn):
    where = {"sigma": carry.sigma, "sigma_next": sigma_next, "steps_left": steps_left}
    try:
        return sampler.update(eps, carry.sampler, carry.x, **where, key=key, eps_fn=eps_fn)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise ValueError(f"sampling has a gradient but no loss, and {error}") from error


def _where(moves, after, before):
    if after.shape[:1] != moves.shape:
        raise ValueError(
            "the clock moves samples one by one, but a step carries an array of shape "
            f"{after.shape} for all of them: give (b,) levels, and wrap the sampler's "
            "transformation in `per_sample`"
        )
    return jnp.where(moves.reshape(-1, *(1,) * (after.ndim - 1)), after, before)


def _record(observe, step: Step):
    return step.sigma, observe(step) if observe else None


def _python_loop(observe, on_step, step, carry, n):
    records = []
    for i in range(n):
        before = carry.nfe
        carry, move = step(carry, i)
        if bool((carry.nfe == before).all()):
            break  # every sample waits, and always will
        _require_finite(move.x_next, f"step {i}", move.sigma)
        records.append(_record(observe, move))
        if on_step is not None and on_step(move):
            break
    if records:
        stack = lambda *leaves: jax.device_put(np.stack(leaves))  # noqa: E731 - see `level_at`
        sigma, observed = zip(*jax.device_get(records), strict=True)
        return carry, (stack(*sigma, carry.sigma), jax.tree.map(stack, *observed))
    # No step was taken: what one would have shown says which empty arrays to stack.
    like = jax.eval_shape(lambda carry: _record(observe, step(carry, 0)[1])[1], carry)
    empty = lambda a: jnp.zeros((0, *a.shape), a.dtype)  # noqa: E731
    return carry, (carry.sigma[None], jax.tree.map(empty, like))


def _scan_loop(observe, step, carry, n):
    def body(carry, i):
        carry, move = step(carry, i)
        return carry, _record(observe, move)

    carry, (sigmas, observed) = jax.lax.scan(body, carry, jnp.arange(n))
    return carry, (jnp.concatenate([sigmas, carry.sigma[None]]), observed)


@partial(jax.jit, static_argnames=("sampler", "finish", "observe", "clock"))
def _compiled(problem, sampler, levels, keys, cond, x, finish, observe, clock):
    loop = partial(_scan_loop, observe)
    return _sample(loop, problem, sampler, levels, keys, cond, x, finish, clock)


class _Counter:
    """An `eps_fn` that counts its calls."""

    def __init__(self, eps_fn: EpsFn):
        self.eps_fn, self.calls = eps_fn, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.eps_fn(x, sigma)


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())


def _require_finite(x: Samples, who: str, sigma: Sigma) -> None:
    if not _all_finite(x):
        raise FloatingPointError(
            f"{who} from sigma = {float(jnp.max(sigma)):.4g} left samples that are not finite; "
            "the sampler diverges on these levels, or the denoiser overflows"
        )


def _checked(problem: Problem, levels: Levels, keys: Keys) -> Levels:
    """The levels as an array, all arguments being what they should."""
    for leaf in jax.tree.leaves(problem):
        if hasattr(leaf, "denoise"):
            how = "`jax.tree_util.register_dataclass` makes it one, with arrays as data fields"
            raise ValueError(f"{type(leaf).__name__} is no pytree: {how}")
    check_keys(keys)
    if isinstance(levels, jax.core.Tracer):
        return levels
    values = np.asarray(levels)
    if values.ndim != 1 or not values.size or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"levels are a vector of positive, finite noise levels, got {levels}")
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else float
    return jax.device_put(values.astype(jax.dtypes.canonicalize_dtype(dtype)))
