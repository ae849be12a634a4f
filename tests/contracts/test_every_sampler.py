"""What the driver and every sampler yaml promise, whatever the sampler's rule is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.cost import evaluations, levels_within
from optdiff.problems import gaussian
from optdiff.sample import Clock, sample, sample_keys, sample_scan


def run(sampler, setting, *, levels=None, **changes):
    """`sample` in this setting, with some of it changed."""
    given = setting | changes
    levels = given["levels"] if levels is None else jnp.asarray(levels)
    optional = {name: given[name] for name in given.keys() - {"problem", "levels", "keys"}}
    return sample(given["problem"], sampler, levels, given["keys"], **optional)


def iterate(step):
    return step.x_next


@pytest.fixture
def fresh(setting):
    """`fresh(scale)`: a network of a structure that was never compiled, whatever ran before."""
    network = setting["problem"]
    schedule = network.schedule._replace(sigma=lambda t: t)  # equal to no other
    return lambda scale: replace(network, weights=scale * network.weights, schedule=schedule)


@pytest.fixture
def networks(tmp_path):
    """Counts the modules with the network among all that the test compiled so far: the only ones
    with a hyperbolic tangent."""

    def count():
        modules = [path.read_text() for path in tmp_path.glob("*_compile.mlir")]
        assert modules, "nothing was compiled, or not written down"
        return sum("stablehlo.tanh" in module for module in modules)

    jax.config.update("jax_dump_ir_to", str(tmp_path))
    yield count
    jax.config.update("jax_dump_ir_to", "")


@pytest.mark.slow
def test_scan_mode_takes_the_steps_of_host_mode_at_the_same_cost(sampler, setting):
    """Iterates, levels and NFE; and the gradient, by weights, levels and starts, in one random
    direction against a central difference of host mode. One program computes all of scan mode's.
    """
    at = tuple(setting[name] for name in ("problem", "levels", "x"))
    keys, cond = setting["keys"], setting["cond"]
    aim = jax.random.normal(jax.random.key(3), setting["x"].shape)

    def scan(at):
        problem, levels, x = at
        options = {"cond": cond, "x": x, "observe": iterate}
        x0, trace = sample_scan(problem, sampler, levels, keys, **options)
        return jnp.vdot(x0, aim), (x0, trace)

    def host(at):
        problem, levels, x = at
        return run(sampler, setting, problem=problem, levels=levels, x=x, observe=iterate)

    (_, (x0, trace)), gradient = jax.jit(jax.value_and_grad(scan, has_aux=True))(at)
    host_x0, host_trace = host(at)
    np.testing.assert_allclose(trace.observed, host_trace.observed, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(x0, host_x0, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(trace.sigma, host_trace.sigma)
    np.testing.assert_array_equal(trace.nfe, host_trace.nfe)

    direction = jax.tree.map(lambda a, noise: a * noise, at, _noise_like(at))
    ahead, behind = (
        jnp.vdot(host(jax.tree.map(lambda a, d, by=by: a + by * d, at, direction))[0], aim)
        for by in (1e-6, -1e-6)
    )
    along = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(along, (ahead - behind) / 2e-6, rtol=1e-5)


def _noise_like(tree):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    drawn = [jax.random.normal(key, a.shape) for key, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def test_samples_depend_on_their_keys_alone(sampler, setting):
    first, again = (run(sampler, setting)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_eight_samples_together_are_each_alone(sampler, setting):
    together, _ = run(sampler, setting)
    for i in (0, 3, 7):  # they differ in nothing but their place
        own = {name: setting[name][i : i + 1] for name in ("keys", "cond", "x")}
        alone, _ = run(sampler, setting, **own)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_a_level_per_sample_is_as_good_as_one_for_all(sampler, setting):
    levels = setting["levels"]
    each = Clock(
        lambda x: (jnp.full(x.shape[0], levels[0]), levels),
        lambda levels, x, eps, i: (jnp.full(x.shape[0], levels[i + 1]), None, levels),
    )
    x0, trace = run(sampler, setting, clock=each)
    np.testing.assert_allclose(x0, run(sampler, setting)[0], rtol=1e-10, atol=1e-10)
    assert trace.sigma.shape == (6, 8)


def test_a_run_as_in_production_is_that_in_double(sampler, sampler_in_float32, setting):
    """With everything in float32: network, levels, the sampler's own tables."""
    exact, _ = run(sampler, setting)
    with jax.enable_x64(False):
        single = jax.tree.map(_single, setting)
        x0, trace = run(sampler_in_float32, single)
    assert x0.dtype == trace.sigma.dtype == jnp.float32
    np.testing.assert_allclose(x0, exact, atol=1e-3)


def _single(a):
    return jnp.asarray(a, jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


def test_samples_keep_their_type(sampler, setting):
    dtype = jnp.bfloat16
    x, cond = setting["x"].astype(dtype), setting["cond"].astype(dtype)
    x0, _ = run(sampler, setting, x=x, cond=cond)
    assert x0.dtype == dtype
    assert jnp.isfinite(x0).all()

    # A scan refuses a carry whose types change, and is traced here without being compiled.
    def scan(problem, levels):
        return sample_scan(problem, sampler, levels, setting["keys"], cond=cond, x=x)[0]

    assert jax.eval_shape(scan, setting["problem"], setting["levels"]).dtype == dtype


@pytest.mark.parametrize("n", [1, 3])
def test_any_number_of_levels_will_do(sampler, setting, n):
    levels = setting["levels"][:n]
    x0, trace = run(sampler, setting, levels=levels)
    assert jnp.isfinite(x0).all()
    assert trace.sigma.tolist() == levels.tolist()
    assert trace.nfe.tolist() == [evaluations(sampler, n)] * 8


@pytest.mark.parametrize(
    "levels",
    [
        [80.0, 80.0, 80.0, 1.0, 1.0, 0.1],  # steps of zero length, also twice running
        [80.0, 40.0, 60.0, 30.0, 45.0, 0.1],  # levels that rise again, as under churn
        [1.0, 1.0 - 1e-9, 1.0 - 1e-8, 1.0 - 1e-7],  # next to no step
        [1e6, 1e-2, 1e-6],  # leaps
    ],
)
def test_odd_levels_give_finite_samples(sampler, setting, levels):
    assert jnp.isfinite(run(sampler, setting, levels=levels)[0]).all()


def test_no_gradient_is_no_accident(sampler, setting):
    """Where eps is exactly zero, lengths and mean squares are zero too."""
    still = gaussian(mean=jnp.zeros(4), cov=jnp.eye(4))
    x0, _ = run(sampler, setting, problem=still, cond=None, x=jnp.zeros((8, 4)))
    assert jnp.isfinite(x0).all()


def test_every_budget_is_used_and_kept(sampler, setting):
    """A run costs no more than its budget, and one more level would have."""
    for budget in range(1, 13):
        n = levels_within(sampler, budget)
        assert evaluations(sampler, n) <= budget < evaluations(sampler, n + 1)
    _, trace = run(sampler, setting, levels=jnp.geomspace(10.0, 0.1, n))
    assert trace.nfe.tolist() == [evaluations(sampler, n)] * 8


def test_a_refused_step_leaves_no_trace(sampler, setting):
    """Half of the samples take their five steps first and wait, the others wait and then step.
    How many steps are left differs between them, and is held at one number here."""
    told = optax.GradientTransformationExtraArgs(
        sampler.init, lambda *args, **given: sampler.update(*args, **given | {"steps_left": 9})
    )
    levels, late = jnp.append(setting["levels"], jnp.ones(5)), jnp.arange(8) >= 4
    taking_turns = Clock(
        lambda x: (jnp.full(8, levels[0]), jnp.zeros(8, int)),
        lambda at, x, eps, i: (levels[at + 1], late == (i >= 5), at + (late == (i >= 5))),
    )

    def sampled():
        return run(told, setting, levels=levels, clock=taking_turns)[0]

    if any(leaf.shape[:1] != (8,) for leaf in jax.tree.leaves(sampler.init(setting["x"]))):
        with pytest.raises(ValueError, match="per_sample"):
            sampled()
        return
    uninterrupted, _ = run(told, setting)
    with_other_keys, _ = run(told, setting, keys=sample_keys(9, 8))
    # Noise belongs to the driver's step: where there is some, those who waited draw another.
    noisy = not jnp.array_equal(uninterrupted, with_other_keys)
    who = ~late if noisy else late | ~late
    np.testing.assert_allclose(sampled()[who], uninterrupted[who], rtol=1e-10, atol=1e-10)


def test_no_sampler_and_no_step_count_compiles_the_network_again(
    samplers, setting, fresh, networks
):
    def sweep(problem, some, batch=8):
        batched = {name: setting[name][:batch] for name in ("keys", "cond", "x")}
        for sampler in some:
            for n in (3, 5):
                levels = setting["levels"][:n]
                run(sampler, setting, problem=problem, levels=levels, **batched)

    problem, other_weights = fresh(0.3), fresh(0.4)
    sweep(problem, samplers.values())
    assert networks() == 1
    sweep(other_weights, [samplers["ddim"]])
    assert networks() == 1, "weights are arguments, not constants"
    sweep(problem, [samplers["ddim"]], batch=4)
    assert networks() == 2, "the count sees a compilation where there is one"


def test_scan_mode_compiles_the_network_once_a_program(samplers, setting, fresh, networks):
    options = {name: setting[name] for name in ("cond", "x")}

    def scan(problem, n):
        levels, keys = setting["levels"][:n], setting["keys"]
        return sample_scan(problem, samplers["ddim"], levels, keys, **options)[0]

    first = scan(fresh(0.3), n=3)
    assert networks() == 1, "the count sees a network inside a larger program"
    second = scan(fresh(0.4), n=3)
    assert networks() == 1, "weights are arguments, not constants"
    assert not jnp.allclose(first, second)
    scan(fresh(0.4), n=4)
    assert networks() == 2
