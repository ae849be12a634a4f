"""Trajectories against the scheduler of the same name in diffusers: at every positive level and at
the end, over spacings, levels, prediction types and numbers of steps.

Where diffusers departs from the method, the test mends the oracle, in a few lines, and says so.
"""

from fractions import Fraction

import pytest
from diffusers_oracle import STEPS, Case, cases

from optdiff.samplers import ancestral, ddim, dpmpp_2m, heun, ipndm

TRAINED_ONLY = cases(levels=("trained",))
TRAINED_ONLY_NO_SAMPLE = cases(levels=("trained",), predictions=("epsilon", "v_prediction"))
ALL = cases()
NO_SAMPLE = cases(predictions=("epsilon", "v_prediction"))


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
    parity("DPMSolverMultistepScheduler", dpmpp_2m(), case, lower_order_final=False)


@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_lms_1(case, parity):
    parity("LMSDiscreteScheduler", ddim(), case, options=lambda *_: {"order": 1})


@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_unipc_1_without_corrector(case, parity):
    off = {"disable_corrector": list(range(case.steps))}
    parity("UniPCMultistepScheduler", ddim(), case, solver_order=1, **off)


def to_the_next_timestep(scheduler, call, last):
    """DDIM and PNDM step by `1000 // n` timesteps wherever the next one is. With linspace spacing
    that is another level than the one they read next: let it be the one."""
    here, after = (*scheduler.timesteps.tolist(), -1)[call : call + 2]
    scheduler.num_inference_steps = Fraction(1000, here - after)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_ddim(case, eta, parity):
    def options(*call):
        if case.spacing == "linspace":
            to_the_next_timestep(*call)
        return {"eta": eta}

    parity("DDIMScheduler", ancestral(eta), case, noisy=True, options=options)


@pytest.mark.parametrize("case", TRAINED_ONLY, ids=str)
def test_ddpm(case, parity):
    parity("DDPMScheduler", ancestral(1.0), case, noisy=True)


@pytest.mark.parametrize("case", [Case(steps) for steps in STEPS], ids=str)
def test_ipndm(case, parity):
    """Its first level is infinite and its step to zero has memory: begin at 80 and end with the
    denoised. Its networks predict v."""

    def begin_at_80(scheduler):
        scheduler.alphas[0] = 1 / (1 + 80.0**2) ** 0.5
        scheduler.betas[0] = 80.0 * scheduler.alphas[0]

    def end_with_x0(scheduler, call, last):
        if last:
            scheduler.ets = []
        return {}

    parity("IPNDMScheduler", ipndm(4), case, patch=begin_at_80, options=end_with_x0)
