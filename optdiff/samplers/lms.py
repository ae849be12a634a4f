"""Adams-Bashforth over eps with weights that follow the steps: one method of three names."""

import optax

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.multistep import History, polynomial_weights
from optdiff.types import Sampler


def lms(order: int = 4) -> Sampler:
    """Linear multistep in sigma (k-diffusion's LMS): integrate the polynomial through the last
    `order` gradients exactly,

    `x' = x + sum_j w_j eps_j,   w_j = integral from sigma to sigma' of l_j(s) ds`

    with `l_j` the Lagrange basis on the levels of the gradients; lower orders while the history
    fills. At order 2 it is gradient estimation with `gamma = 1 + h / (2 h_prev)`.

    One evaluation per step; linear. Of the stated order once the history is full, on any grid; the
    first steps, of lower order, leave an error of second order in all. k-diffusion and diffusers
    take the step to zero by the same rule: `finish=step_to_zero`; a last denoising is its order 1.

    Args:
      order: 1 (DDIM) to 4.

    Raises:
      ValueError: for another order.

    >>> sampler = lms(order=3)
    """
    if order not in range(1, 5):
        raise ValueError(f"order is 1 to 4, not {order}")

    def init(x):
        return History.empty(x, order - 1)

    def update(eps, state, x=None, *, sigma, sigma_next, **unused):
        past, h = state.and_now(eps, sigma), sigma_next - sigma
        nodes = [level - sigma for level in past.sigmas]
        moments = [h ** (k + 1) / (k + 1) for k in range(order)]
        weights = polynomial_weights(nodes, moments, past.count)
        return weighted_sum(*zip(weights, past.fields, strict=True)), past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


def ipndm_v(order: int = 4) -> Sampler:
    """iPNDM with weights for steps that vary (arXiv 2204.13902, appendix; `ipndm_v` of the
    published comparisons): the method of `lms`, under which see the equation.

    At order 3 the code behind those comparisons misplaces a bracket and is exact on constant steps
    only; this one is exact on all.

    Args and errors: as `lms`.

    >>> sampler = ipndm_v(order=3)
    """
    return lms(order)
