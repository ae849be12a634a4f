"""Trajectories against the scheduler of the same name in diffusers: at every positive level and at
the end, over spacings, levels, prediction types and numbers of steps.

Where diffusers departs from the method, the test mends the oracle, in a few lines, and says so.
"""

from fractions import Fraction
from itertools import cycle

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yamls
from diffusers_oracle import STEPS, TRAINED, Case, cases, require_same

from optdiff.grids import explicit
from optdiff.noise import scaled_linear
from optdiff.sample import step_to_zero
from optdiff.samplers import (
    ancestral,
    bh1,
    bh2,
    ddim,
    deis_log_rho,
    dpmpp_2m,
    dpmpp_3m,
    heun,
    ipndm,
    lms,
    plms,
    sa_solver,
    tau_between,
    unip,
    unipc,
)

TRAINED_ONLY = cases(levels=("trained",))
TRAINED_ONLY_NO_SAMPLE = cases(levels=("trained",), predictions=("epsilon", "v_prediction"))
ALL = cases()
NO_SAMPLE = cases(predictions=("epsilon", "v_prediction"))


def each_with(values, some):
    """The values in turn, one with each of some cases."""
    return list(zip(some, cycle(values), strict=False))


# The highest order on all, the lower ones in turn on half of them.
ORDERS = each_with([3], ALL) + each_with([1, 2], ALL[::2])


@pytest.mark.parametrize("case", NO_SAMPLE, ids=str)
def test_euler(case, parity):
    parity("EulerDiscreteScheduler", ddim(), case)


@pytest.mark.parametrize("case", TRAINED_ONLY_NO_SAMPLE, ids=str)
def test_euler_ancestral(case, parity):
    parity("EulerAncestralDiscreteScheduler", ancestral(1.0), case, noisy=True)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_heun(case, parity):
    parity("HeunDiscreteScheduler", heun(), case, calls_per_step=2)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_dpmpp_1(case, parity):
    parity("DPMSolverMultistepScheduler", ddim(), case, solver_order=1)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_dpmpp_2m(case, parity):
    parity("DPMSolverMultistepScheduler", dpmpp_2m(), case)


# diffusers lowers the order at the end below 15 steps: at its boundary too.
BOUNDARY = [Case(14, "leading"), Case(15, "leading")]
SHORT_AND_LONG = [*ALL, *BOUNDARY]


@pytest.mark.parametrize("case", SHORT_AND_LONG, ids=str)
def test_dpmpp_3m_as_its_yaml_has_it(case, parity):
    parity("DPMSolverMultistepScheduler", yamls.sampler("dpmpp_3m"), case, solver_order=3)


@pytest.mark.parametrize(
    ("case", "order"),
    each_with([3], BOUNDARY) + each_with([2, 3], BOUNDARY + TRAINED_ONLY),
    ids=str,
)
def test_dpmpp_that_ends_at_its_lowest_level(case, order, parity):
    """Which on Karras, exponential and beta levels is the last one again, and theirs no number."""
    make = {2: dpmpp_2m, 3: dpmpp_3m}[order]
    parity(
        "DPMSolverMultistepScheduler",
        make(final_order=1, lower_below=16),
        case,
        solver_order=order,
        final_sigmas_type="sigma_min",
    )


@pytest.mark.parametrize(("case", "order"), each_with([4, 3, 2, 4, 1], NO_SAMPLE), ids=str)
def test_lms(case, order, parity):
    sampler, options = lms(order), {"options": lambda *call: {"order": order}}
    parity("LMSDiscreteScheduler", sampler, case, to_zero=step_to_zero, **options)


@pytest.mark.parametrize(("case", "order"), ORDERS + each_with([3], BOUNDARY), ids=str)
def test_deis(case, order, parity):
    """It ends at a positive level, which on Karras, exponential and beta levels is the last one
    again: a step of zero length. At order 3 on beta levels its float32 constants are off by more
    than 1e-4, from itself as from us."""
    off_by_itself = order == 3 and case.levels == "beta" and case.steps > 5
    _, theirs, shipped = parity(
        "DEISMultistepScheduler",
        deis_log_rho(order, final_order=1, lower_below=16),
        case,
        solver_order=order,
        as_shipped=2e-2 if off_by_itself else 1e-4,
    )
    if off_by_itself:
        with pytest.raises(AssertionError):
            require_same(shipped, theirs, 1e-4)


def end_all_but_at_zero(scheduler):
    """Where a scheduler must end at a positive level, because it divides by it or its B(h) is
    infinite: let it end at one so low that it is the denoised."""
    scheduler.sigmas[-1] = 1e-14


@pytest.mark.parametrize(("case", "order"), ORDERS, ids=str)
def test_unipc(case, order, parity):
    """With bh1, diffusers is not a number on the step to zero."""
    sampler = yamls.sampler("unipc", order=order)
    parity("UniPCMultistepScheduler", sampler, case, solver_order=order)


@pytest.mark.parametrize(("case", "order"), each_with([3, 2, 1], TRAINED_ONLY), ids=str)
def test_unipc_bh1(case, order, parity):
    parity(
        "UniPCMultistepScheduler",
        unipc(order, bh1, final_order=2),
        case,
        solver_order=order,
        solver_type="bh1",
        patch=end_all_but_at_zero,
    )


@pytest.mark.parametrize(("case", "order"), each_with([3, 2, 1], TRAINED_ONLY), ids=str)
def test_unipc_without_its_corrector(case, order, parity):
    parity(
        "UniPCMultistepScheduler",
        unip(order, bh2, final_order=2),
        case,
        solver_order=order,
        disable_corrector=list(range(case.steps)),
    )


POINTS = [(2, 2), (3, 4), (1, 2), (2, 3), (4, 2), (1, 1), (3, 3)]


@pytest.mark.parametrize(("case", "points"), each_with(POINTS, ALL[::-1]), ids=str)
def test_sa_solver(case, points, parity):
    """Its orders fall towards a last step that, on its own levels, has zero length or ends at a
    positive one: `final_order` counts from the denoising, so let it end with that. With three
    points or more on beta levels its float32 constants are off by more than 1e-4, from itself as
    from us."""
    predictor, corrector = points
    off_by_itself = predictor > 2 and case.levels == "beta" and case.steps > 10
    _, theirs, shipped = parity(
        "SASolverScheduler",
        sa_solver(predictor, corrector, lambda sigma: 0.7 * jnp.ones_like(sigma), final_order=2),
        case,
        noisy=True,
        patch=end_all_but_at_zero,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(0.7),
        as_shipped=2e-2 if off_by_itself else 1e-4,
    )
    if off_by_itself:
        with pytest.raises(AssertionError):
            require_same(shipped, theirs, 1e-4)


@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_sa_solver_with_noise_in_the_middle(case, parity):
    """Its default tau: 1 at timesteps 200 to 800."""

    def tau(t):
        return torch.tensor(1.0 if 200 <= t <= 800 else 0.0)

    low, high = (np.sqrt(1 / _alphas_cumprod()[t] - 1) for t in (200, 800))
    parity(
        "SASolverScheduler",
        sa_solver(2, 2, tau_between(low * (1 - 1e-6), high * (1 + 1e-6))),
        case,
        noisy=True,
        lower_order_final=False,
        tau_func=tau,
    )


def _alphas_cumprod():
    betas = np.linspace(TRAINED["beta_start"] ** 0.5, TRAINED["beta_end"] ** 0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def to_the_next_timestep(scheduler, call, last):
    """DDIM and PNDM step by `1000 // n` timesteps wherever the next one is. With linspace spacing
    that is another level than the one they read next: let it be the one."""
    here, after = (*scheduler.timesteps.tolist(), -1)[call : call + 2]
    scheduler.num_inference_steps = Fraction(1000, here - after)


@pytest.mark.parametrize(("case", "eta"), each_with([0.0, 0.5, 1.0, 0.7], TRAINED_ONLY), ids=str)
def test_ddim(case, eta, parity):
    def options(*call):
        if case.spacing == "linspace":
            to_the_next_timestep(*call)
        return {"eta": eta}

    parity("DDIMScheduler", ancestral(eta), case, noisy=True, options=options)


@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_ddpm(case, parity):
    parity("DDPMScheduler", ancestral(1.0), case, noisy=True)


@pytest.mark.parametrize(
    ("case", "to_zero"), each_with([False, True], TRAINED_ONLY_NO_SAMPLE), ids=str
)
def test_plms(case, to_zero, parity):
    """Where a network predicts v it combines v's of several levels and reads eps off their sum at
    the last; the method combines eps, as here. The levels are those that a grid lists."""

    def read_eps_first(scheduler):
        step, prediction = scheduler.step, scheduler.config.prediction_type
        scheduler.register_to_config(prediction_type="epsilon")

        def converted(output, t, z):
            if prediction == "v_prediction":
                alpha = scheduler.alphas_cumprod[t]
                output = alpha.sqrt() * output + (1 - alpha).sqrt() * z
            return step(output, t, z)

        scheduler.step = converted

    def options(scheduler, call, last):
        if case.spacing == "linspace" and call != 1:  # its second call comes from the first level
            to_the_next_timestep(scheduler, call, last)
        return {}

    ours, *_ = parity(
        "PNDMScheduler",
        plms(),
        case,
        to_zero=step_to_zero,
        patch=read_eps_first,
        options=options,
        skip_prk_steps=True,
        set_alpha_to_one=to_zero,
        steps_offset=1 if case.spacing == "leading" else 0,
    )
    levels = ours.levels.tolist()
    assert levels[1] == levels[2], "its second timestep is repeated"
    np.testing.assert_array_equal(explicit(scaled_linear(), len(levels), levels=levels), levels)


@pytest.mark.parametrize("case", [Case(steps) for steps in STEPS], ids=str)
def test_ipndm(case, parity):
    """Its first level is infinite: begin at 80. Its networks predict v."""

    def begin_at_80(scheduler):
        scheduler.alphas[0] = 1 / (1 + 80.0**2) ** 0.5
        scheduler.betas[0] = 80.0 * scheduler.alphas[0]

    options = {"patch": begin_at_80, "prediction": "v_prediction"}
    parity("IPNDMScheduler", ipndm(4), case, to_zero=step_to_zero, **options)
