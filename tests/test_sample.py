"""The driver: what it counts, checks, shows and lets others decide. What it does to every sampler
alike is in `contracts`."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import yamls

from optdiff.cost import evals_per_step, levels_within
from optdiff.denoisers import Guided
from optdiff.grids import karras
from optdiff.problems import digits, energy, mixture
from optdiff.sample import Clock, identity, sample, sample_keys, sample_scan, start, step_to_zero
from optdiff.samplers import (
    ancestral,
    ddim,
    from_optimizer,
    from_transformation,
    gradient_estimation,
    ipndm,
    whole_batch,
)

MODES = [sample, sample_scan]


@pytest.fixture(scope="module")
def problem():
    return mixture(modes=3, dim=4, stds=0.3)


@pytest.fixture(scope="module")
def levels(problem):
    return karras(problem.schedule, 6)


@pytest.fixture(scope="module")
def keys():
    return sample_keys(0, 4)


@pytest.fixture(scope="module")
def x(problem, levels, keys):
    return start(problem, keys, levels[0])


# --- levels ---


@pytest.mark.parametrize("levels", [[], [1.0, 0.0], [1.0, -1.0], [np.nan], [np.inf, 1.0]])
def test_levels_must_be_positive_and_finite(problem, keys, levels):
    with pytest.raises(ValueError, match="positive, finite"):
        sample(problem, ddim(), jnp.array(levels, float), keys)


def test_levels_must_be_a_vector(problem, keys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="vector"):
        sample(problem, ddim(), jnp.ones((2, 2)), keys)


# --- where it starts and ends ---


@pytest.mark.parametrize("mode", MODES)
def test_starts_at_the_prior(mode, problem, levels, keys, x):
    given, _ = sample(problem, ddim(), levels, keys, x=x)
    np.testing.assert_allclose(mode(problem, ddim(), levels, keys)[0], given, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_finish_costs_what_it_evaluates(mode, problem, levels, keys, x):
    clean, trace = mode(problem, ddim(), levels, keys, x=x)
    noisy, shorter = mode(problem, ddim(), levels, keys, x=x, finish=identity)
    np.testing.assert_allclose(clean, problem.denoise(noisy, levels[-1]), rtol=1e-9, atol=1e-9)
    assert trace.nfe.tolist() == [6] * 4
    assert shorter.nfe.tolist() == [5] * 4


@pytest.mark.parametrize("mode", MODES)
def test_a_step_to_zero_is_the_samplers_own(mode, problem, levels, keys, x):
    """Gradient estimation's, by its equation, from the last two gradients."""
    options = {"x": x, "observe": lambda step: step}
    x0, trace = mode(
        problem, gradient_estimation(2.0), levels, keys, finish=step_to_zero, **options
    )
    last = jax.tree.map(lambda a: a[-1], trace.observed)
    eps = (last.x_next - problem.denoise(last.x_next, levels[-1])) / levels[-1]
    due = last.x_next - levels[-1] * (2.0 * eps - last.eps)
    np.testing.assert_allclose(x0, due, rtol=1e-9, atol=1e-9)
    assert trace.nfe.tolist() == [6] * 4, "as many as there are levels"
    plain, _ = mode(problem, ddim(), levels, keys, x=x, finish=step_to_zero)
    denoised, _ = mode(problem, ddim(), levels, keys, x=x)
    np.testing.assert_allclose(plain, denoised, rtol=1e-9, atol=1e-9)


def test_one_level_is_one_denoising(problem, levels, keys, x):
    clean, _ = sample(problem, ddim(), levels[:1], keys, x=x)
    np.testing.assert_allclose(clean, problem.denoise(x, levels[0]), rtol=1e-10)


# --- what it shows ---


@pytest.mark.parametrize("mode", MODES)
def test_observed_steps_are_the_trajectory(mode, problem, levels, keys, x):
    _, trace = mode(problem, ddim(), levels, keys, x=x, observe=lambda step: step)
    seen = trace.observed
    assert seen.i.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(seen.sigma, levels[:-1])
    np.testing.assert_array_equal(seen.sigma_next, levels[1:])
    np.testing.assert_array_equal(trace.sigma, levels)
    np.testing.assert_array_equal(seen.x[0], x)
    np.testing.assert_array_equal(seen.x[1:], seen.x_next[:-1])
    direction = (x - problem.denoise(x, levels[0])) / levels[0]
    np.testing.assert_allclose(seen.eps[0], direction, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_no_steps_shows_none(mode, problem, levels, keys, x):
    _, trace = mode(problem, ddim(), levels[:1], keys, x=x, observe=lambda step: step.x)
    assert trace.observed.shape == (0, 4, 4)
    assert trace.sigma.tolist() == [80.0]


@pytest.mark.parametrize("mode", MODES)
def test_samplers_are_told_how_many_steps_are_left(mode, problem, levels, keys):
    """Counting the step itself: 5 on the first of five, 1 on the last."""

    def update(eps, state, x=None, *, steps_left, **unused):
        return jnp.full_like(x, 10.0) ** (steps_left - 1), state

    counting = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    x = jnp.zeros((4, 4))
    reached, _ = mode(problem, counting, levels, keys, x=x, finish=identity)
    assert (reached == 11111).all()


def test_a_true_value_of_on_step_ends_the_loop(problem, levels, keys, x):
    shown = []

    def on_step(step):
        shown.append(int(step.i))
        return step.i == 1

    early, trace = sample(problem, ddim(), levels, keys, x=x, on_step=on_step)
    assert shown == [0, 1]
    assert trace.nfe.tolist() == [3] * 4
    np.testing.assert_array_equal(trace.sigma, levels[:3])
    np.testing.assert_allclose(early, sample(problem, ddim(), levels[:3], keys, x=x)[0], rtol=1e-10)


# --- what it refuses ---


def _broken_below(problem, level):
    """A denoiser that is not a number below a level."""

    def log_density(problem, x, sigma, cond):
        return problem.log_density(x, sigma) * jnp.where(sigma < level, jnp.nan, 1.0)

    return energy(problem, log_density)


@pytest.mark.parametrize(
    ("broken_from", "who"),
    [(0, "step 0 from sigma = 80 "), (3, "step 3 from sigma = "), (5, "the ending from sigma")],
)
def test_the_step_that_breaks_a_sample_is_named(problem, levels, keys, broken_from, who):
    broken = _broken_below(problem, levels[broken_from] * 1.001)
    with pytest.raises(FloatingPointError, match=who):
        sample(broken, ddim(), levels, keys)


def test_scan_mode_passes_broken_samples_on(problem, levels, keys, x):
    broken = _broken_below(problem, levels[3] * 1.001)
    assert jnp.isnan(sample_scan(broken, ddim(), levels, keys, x=x)[0]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "keys", [jax.random.key(0), jax.random.PRNGKey(0), jnp.zeros((4, 2), np.uint32), None]
)
def test_what_is_not_one_key_per_sample_is_refused(mode, problem, levels, keys, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="one key per sample, as `sample_keys"):
        mode(problem, ddim(), levels, keys)


@pytest.mark.parametrize("mode", MODES)
def test_levels_may_be_a_list(mode, problem, keys, x, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    by_list, _ = mode(problem, ddim(), [4, 2, 1], keys, x=x)
    by_array, _ = mode(problem, ddim(), jnp.array([4.0, 2.0, 1.0]), keys, x=x)
    np.testing.assert_array_equal(by_list, by_array)
    for wrong in ([4, 2, 0], [], jnp.array([1.0, 0.0]), jnp.array([np.nan])):
        with pytest.raises(ValueError, match="positive, finite"):
            mode(problem, ddim(), wrong, keys, x=x)


@pytest.mark.parametrize("mode", MODES)
def test_a_problem_that_is_no_pytree_is_told_how_to_be_one(mode, problem, levels, keys):
    class Own(type(problem)):
        """Not registered."""

    for own in (Own(**vars(problem)), Guided(Own(**vars(problem)), 2.0, None)):
        with pytest.raises(ValueError, match=r"Own is no pytree: `jax.tree_util.register_datacl"):
            mode(own, ddim(), levels, keys)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "optimizer", [optax.lbfgs(), optax.polyak_sgd(), optax.contrib.momo(0.1)], ids=range(3)
)
def test_optimizers_that_ask_for_a_loss_are_refused(mode, optimizer, problem, levels, keys, x):
    with pytest.raises(ValueError, match=r"no loss, and .* missing .*'value'"):
        mode(problem, from_optimizer(optimizer), levels, keys, x=x)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_guidance_that_is_no_number_is_refused(guidance):
    with pytest.raises(ValueError, match="guidance is a finite number"):
        Guided(mixture(), guidance, None)


# --- keys ---


def test_keys_are_folded_from_the_global_index():
    key = jax.random.key(7)
    expected = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(2, 7)]
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(7, 5, start=2)), expected)


def test_every_draw_has_a_key_of_its_own(problem, levels, keys):
    """The start and each step: none has another's, nor the sample's own."""
    used = [keys]

    class Recording(type(problem)):
        def prior(self, keys, sigma, cond=None):
            used.append(keys)
            return super().prior(keys, sigma, cond)

    def update(eps, state, x=None, *, key, **unused):
        used.append(key)
        return jnp.zeros_like(x), state

    recording = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    x = start(Recording(**vars(problem)), keys, levels[0])
    sample(problem, recording, levels, keys, x=x)
    drawn = np.concatenate([jax.random.key_data(k) for k in used])
    assert len(used) == 2 + 5
    assert len(np.unique(drawn, axis=0)) == len(drawn)


# --- guidance and conditions ---


def test_guided_digits_together_are_each_alone():
    """Two passes over a doubled batch must still keep every sample with its own digit."""
    problem, keys, cond = digits(guidance=2.0), sample_keys(0, 8), jnp.eye(10)[:8]
    levels = karras(problem.schedule, 4)
    x = levels[0] * jax.random.normal(jax.random.key(0), (8, 28, 28))
    together, trace = sample(problem, ipndm(), levels, keys, cond=cond, x=x)
    assert together.dtype == jnp.float64
    for i in range(8):
        own = slice(i, i + 1)
        alone, _ = sample(problem, ipndm(), levels, keys[own], cond=cond[own], x=x[own])
        np.testing.assert_allclose(together[own], alone, rtol=0, atol=1e-6)
    assert trace.nfe.tolist() == [4] * 8, "a guided evaluation is one evaluation"


@pytest.mark.parametrize("mode", MODES)
def test_a_conditional_problem_asks_for_its_condition(mode, keys):
    for conditional in (digits(conditional=True), digits(guidance=2.0)):
        levels = karras(conditional.schedule, 3)
        with pytest.raises(ValueError, match="a condition per sample, but cond is None"):
            mode(conditional, ddim(), levels, keys)
        x = jnp.zeros((4, 28, 28))
        with pytest.raises(ValueError, match="a condition per sample, but cond is None"):
            mode(conditional, ddim(), levels, keys, x=x)


# --- clocks ---


def stop_when_close(levels, tolerance):
    """Follow the grid, each sample until its residual is small; it then waits at its level."""

    def init(x):
        return jnp.full(x.shape[0], levels[0]), jnp.zeros(x.shape[0], int)

    def following(at, x, eps, i):
        sigma = levels[at]
        on = sigma * jnp.sqrt(jnp.mean(eps**2, axis=1)) > tolerance
        return levels[jnp.minimum(at + 1, len(levels) - 1)], on, at + on

    return Clock(init, following)


STOPPING = {"memory": ipndm(3), "optax": from_transformation(optax.ema(0.5))}


@pytest.mark.parametrize("name", STOPPING)
def test_a_clock_stops_single_samples_in_both_modes(name, problem, keys, x):
    levels = jnp.geomspace(80.0, 0.01, 9)
    clock, sampler = stop_when_close(levels, 0.6), STOPPING[name]
    host, scan = (
        mode(
            problem,
            sampler,
            levels,
            keys,
            x=x,
            clock=clock,
            finish=identity,
            observe=lambda step: step.x_next,
        )
        for mode in MODES
    )
    shown = [trace._replace(batch_nfe=0) for _, trace in (host, scan)]
    for a, b in zip(*map(jax.tree.leaves, shown), strict=True):
        # Host mode ends when the last sample stops; a scan waits with them all.
        np.testing.assert_allclose(a, b[: len(a)] if np.ndim(a) else b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(host[0], scan[0], rtol=1e-9, atol=1e-9)

    _, free = sample(problem, sampler, levels, keys, x=x, observe=lambda step: step.x_next)
    stopped, trace = host
    assert len(np.unique(trace.sigma[-1])) > 1, "samples stop at levels of their own"
    for j, level in enumerate(trace.sigma[-1]):
        last = int(jnp.argmin(jnp.abs(levels - level)))
        assert last > 0
        np.testing.assert_allclose(stopped[j], free.observed[last - 1, j], rtol=1e-9, atol=1e-9)


def test_a_state_for_the_whole_batch_cannot_wait(problem, keys, x, levels):
    sampler = from_transformation(optax.scale_by_adam(), wrap=whole_batch)
    with pytest.raises(ValueError, match=r"shape \(\) for all .* `per_sample`"):
        sample(problem, sampler, levels, keys, x=x, clock=stop_when_close(levels, 1.0))


# --- cost ---


def test_steps_are_counted_by_the_evaluations_they_make():
    def update(eps, state, x, *, sigma, eps_fn, **unused):
        return sum(eps_fn(x, sigma) for _ in range(4)), state

    five = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    assert evals_per_step(five) == 5
    assert [levels_within(five, nfe) for nfe in (1, 5, 6, 10, 11)] == [1, 1, 2, 2, 3]


def test_costs_are_counted_at_the_samples_own_shape():
    """A transformation may need matrices, and none is evaluated for the count."""
    assert evals_per_step(from_transformation(optax.contrib.scale_by_muon()), shape=(4, 4)) == 1


def test_a_budget_below_one_evaluation_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        levels_within(ancestral(), 0)


@pytest.mark.parametrize("name", ["ddim", "heun", "lms", "ancestral", "adam"])
def test_another_number_of_steps_compiles_nothing(name, problem, keys):
    """Neither in the driver nor in its grid."""
    sampler, programs = yamls.sampler(name), []

    def run(n):
        sample(problem, sampler, karras(problem.schedule, n), keys, observe=lambda step: step.eps)

    def listen(event, seconds, **about):
        programs.append(about) if event.endswith("backend_compile_duration") else None

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(29)
        programs.clear()
        for n in (28, 27, 26):
            run(n)
        assert not programs
        jax.jit(lambda x: x - 29)(keys.size)
        assert programs, "what compiles is heard of"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
