"""PLMS: Adams-Bashforth with constant weights and a start of its own."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.multistep import ADAMS_BASHFORTH
from optdiff.types import Sampler, Samples, expand


class PlmsState(NamedTuple):
    """Gradients before this one, newest first, and how many of them are `known`; the level before;
    `count` steps taken."""

    count: Int[Array, "b"]
    known: Int[Array, "b"]
    history: tuple[Samples, ...]
    sigma: Float[Array, "b"]


def plms() -> Sampler:
    """PLMS (arXiv 2202.09778, as latent diffusion runs it): `ipndm(4)` whose first step is
    corrected once the gradient at its end is known,

    `x_1' = x_1 - (sigma_0 - sigma_1) (eps_1 - eps_0) / 2`

    which makes it Heun's. Latent diffusion and diffusers evaluate anew at `x_1'`: their grids give
    the second level twice, n + 1 evaluations for n levels. On such a grid (`explicit` takes one)
    this is their sampler, `finish=step_to_zero` at its end. On any other grid the correction comes
    along with the second step, at no evaluation.

    One evaluation per step; linear. Third order on levels uniform in sigma, where `ipndm` loses one
    to its first step; as that one elsewhere.

    >>> sampler = plms()
    """
    order = len(ADAMS_BASHFORTH)
    table = jnp.array([w + (0.0,) * (order - len(w)) for w in ADAMS_BASHFORTH])

    def init(x):
        zeros = tuple(jnp.zeros_like(x) for _ in range(order - 1))
        nothing = jnp.zeros(x.shape[0], jnp.int32)
        return PlmsState(nothing, nothing, zeros, jnp.zeros(x.shape[0]))

    def update(eps, state, x=None, *, sigma, sigma_next, **unused):
        second = state.count == 1
        again = second & (sigma_next == sigma)  # to be evaluated anew, and remembered then
        h = sigma_next - sigma
        weights = [h * w for w in table[jnp.minimum(state.known, order - 1)].T]
        corrected = jnp.where(second, (sigma - state.sigma) / 2, 0.0)
        past = (eps, *state.history)
        weights = (weights[0] + corrected, weights[1] - corrected, *weights[2:])
        here = expand(again, eps)
        history = tuple(
            jnp.where(here, before, after)
            for before, after in zip(state.history, past, strict=False)
        )
        return weighted_sum(*zip(weights, past, strict=True)), PlmsState(
            state.count + 1,
            jnp.where(again, state.known, state.known + 1),
            history,
            jnp.broadcast_to(sigma, state.sigma.shape).astype(state.sigma.dtype),
        )

    return optax.GradientTransformationExtraArgs(init, update)
