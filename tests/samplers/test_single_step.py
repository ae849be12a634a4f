"""Samplers that look ahead within a step, against diffusers, their limits and their order."""

import diffusers_oracle
import numpy as np
import pytest
from diffusers_oracle import Case, cases

from optdiff.samplers import dpm2, dpm2_ancestral, dpmpp_2s, dpmpp_3s

TWO_CALLS = cases(predictions=("epsilon", "v_prediction"))


@pytest.fixture
def half_way(monkeypatch):
    """Where KDPM2 looks is a second table, whose entries lie otherwise in its ancestral form."""

    def called_at(scheduler):
        calls = len(scheduler.timesteps)
        levels = scheduler.sigmas[: calls + 1].clone()
        middles = scheduler.sigmas_interpol[0 if hasattr(scheduler, "sigmas_down") else 1 :]
        levels[1:-1:2] = middles[: calls - 1 : 2]
        return np.asarray(levels.double())

    monkeypatch.setattr(diffusers_oracle, "called_at", called_at)


@pytest.mark.parametrize("case", TWO_CALLS, ids=str)
def test_dpm2_is_that_of_diffusers(case, parity, half_way):
    parity("KDPM2DiscreteScheduler", dpm2(), case, calls_per_step=2)


@pytest.mark.parametrize("case", TWO_CALLS, ids=str)
def test_dpm2_ancestral_is_that_of_diffusers(case, parity, half_way):
    name = "KDPM2AncestralDiscreteScheduler"
    parity(name, dpm2_ancestral(), case, calls_per_step=2, noisy=True)


def looks_where_we_look(order):
    """The single-step scheduler of diffusers looks ahead at levels of its grid: let those between
    every `order`-th be at equal distances in log SNR, as ours are."""

    def patch(scheduler):
        levels = scheduler.sigmas
        start, stop = levels[:-2:order], levels[order:-1:order]
        for i in range(1, order):
            levels[i:-2:order] = start * (stop / start) ** (i / order)

    return patch


SINGLE_STEP = {"lower_order_final": True}  # which is order 1 on the step to zero alone
LEVELS = ("trained", "karras", "exponential", "beta")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "epsilon")
DECIDED = [
    Case(steps, None, levels, prediction)
    for steps, (levels, prediction) in zip(
        (5, 10, 25, 5, 10, 25), [*zip(LEVELS, PREDICTIONS, strict=True)] * 2, strict=False
    )
]


@pytest.mark.parametrize("case", DECIDED, ids=str)
def test_2s_is_that_of_diffusers(case, parity):
    parity(
        "DPMSolverSinglestepScheduler",
        dpmpp_2s(),
        case._replace(steps=2 * case.steps - 1),
        calls_per_step=2,
        solver_order=2,
        patch=looks_where_we_look(2),
        **SINGLE_STEP,
    )


def slopes_exact_then_not(scheduler, call, last):
    """At order 3 the method integrates the slope exactly when it looks for the second time, and
    fits no curvature. diffusers has both only as kinds of solver: choose one for each call."""
    scheduler.register_to_config(solver_type=("midpoint", "heun", "midpoint")[call % 3])
    return {}


@pytest.mark.parametrize("case", DECIDED, ids=str)
def test_3s_is_that_of_diffusers(case, parity):
    parity(
        "DPMSolverSinglestepScheduler",
        dpmpp_3s(),
        case._replace(steps=3 * case.steps - 2),
        calls_per_step=3,
        solver_order=3,
        patch=looks_where_we_look(3),
        options=slopes_exact_then_not,
        **SINGLE_STEP,
    )
