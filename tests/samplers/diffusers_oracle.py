"""The schedulers of diffusers as oracles: run as a pipeline runs them, with the model's output that
their prediction type asks for, on the levels that they choose themselves.

With their own float32 constants they agree with us, and with themselves in float64, to about 1e-6
at best, so every class is run twice: made float64, and as shipped.
"""

import inspect
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from optdiff.sample import identity, last_denoising, sample
from optdiff.samplers import renoise
from optdiff.types import Ending

TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
USUAL = TRAINED | {"clip_sample": False}
STEPS = (5, 10, 25)
SPACINGS = ("leading", "trailing", "linspace")
LEVELS = ("trained", "karras", "exponential", "beta")
NOTHING = 1e-12
"""A level so low that it is zero; patches may end there where a scheduler cannot divide by it."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Case(NamedTuple):
    """How many steps, on which levels, of which kind of model; None where the scheduler has no
    choice. `str` of it is the test's name."""

    steps: int
    spacing: str | None = None
    levels: str = "trained"
    prediction: str | None = None

    def __str__(self):
        return "-".join(str(chosen) for chosen in self if chosen is not None)

    @property
    def config(self):
        chosen = {"timestep_spacing": self.spacing, "prediction_type": self.prediction}
        if self.levels != "trained":
            chosen[f"use_{self.levels}_sigmas"] = True
        return {key: value for key, value in chosen.items() if value is not None}


def cases(levels=LEVELS, spacings=SPACINGS, predictions=PREDICTIONS) -> list[Case]:
    """Cases in which every value meets every value of another column at least once."""
    return [
        Case(STEPS[(i + j) % 3], spacing, levels[i % len(levels)], predictions[k])
        for i in range(max(3, len(levels)))
        for j, spacing in enumerate(spacings)
        for k in [(i + 2 * j) % 3 % len(predictions)]
    ]


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def in_float64(name):
    """Let the scheduler of this name compute in float64 throughout."""
    module = sys.modules[getattr(diffusers, name).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", Double(torch))
        patch.setattr(module, "np", Double(np), raising=False)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@contextmanager
def _tensors_in_numpy():
    """They hand tensors to NumPy in ways that end one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Run(NamedTuple):
    """Iterates (n, b, ...) at the n positive levels, and where the run ended: at zero, or at the
    last of the levels where the scheduler stops there."""

    levels: np.ndarray
    iterates: np.ndarray
    end: np.ndarray


Patch = Callable[[Any], None]
"""Changes a scheduler once its timesteps are set."""

Options = Callable[[Any, int, bool], dict[str, Any]]
"""`options(scheduler, call, last)`: arguments of this call of `step`; may patch before it."""


def create(name: str, steps: int, *, patch: Patch | None = None, **config):
    """A scheduler with its timesteps set."""
    scheduler = getattr(diffusers, name)
    known = inspect.signature(scheduler).parameters
    usual = {key: value for key, value in USUAL.items() if key in known}
    scheduler = scheduler(**usual | config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):  # else it may begin at the second of equal timesteps
        scheduler.set_begin_index(0)
    if patch is not None:
        patch(scheduler)
    return scheduler


def called_at(scheduler) -> np.ndarray:
    """The level of every call of the model, and after them the level that is left at the end."""
    if hasattr(scheduler, "sigmas_interpol"):  # looks half way, then goes
        levels = scheduler.sigmas.clone()
        levels[1:-1:2] = scheduler.sigmas_interpol[1:-1:2]
    elif hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas
    elif hasattr(scheduler, "alphas_cumprod"):
        alphas = scheduler.alphas_cumprod[scheduler.timesteps]
        last = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
        alphas = torch.cat([alphas, last.reshape(1).to(alphas)])
        levels = ((1 - alphas) / alphas).sqrt()
    else:
        levels = scheduler.betas / scheduler.alphas
    levels = np.asarray(levels.double())
    return np.append(levels[:-1], levels[-1] * (levels[-1] > NOTHING))


def run(
    scheduler,
    denoise: Callable[[np.ndarray, float], np.ndarray],
    x: np.ndarray,
    *,
    prediction: str = "epsilon",
    calls_per_step: int = 1,
    noise: np.ndarray | None = None,
    options: Options | None = None,
) -> Run:
    """Run a scheduler in its own coordinates and its own precision, as a pipeline does.

    Args:
      scheduler: with its timesteps set.
      denoise: `D(x, sigma)`.
      x: the start, in sigma-coordinates.
      prediction: what the model puts out.
      calls_per_step: 2 where every other call only looks ahead.
      noise: (steps, b, ...), what it draws in each step.
      options: what `step` is told besides.
    """
    levels, dtype = called_at(scheduler), torch.get_default_dtype()
    alphas = 1 / np.sqrt(1 + levels**2)
    # Some keep x itself and scale it for the model, others keep `alpha x`.
    scaled = scheduler.scale_model_input(torch.ones((), dtype=dtype), scheduler.timesteps[0])
    keeps = np.ones_like(alphas) if scaled != 1.0 else alphas
    z = torch.tensor(keeps[0] * x, dtype=dtype)
    visited = []
    for call, t in enumerate(scheduler.timesteps):
        x = np.asarray(scheduler.scale_model_input(z, t).double()) / alphas[call]
        if call % calls_per_step == 0:
            visited.append(x)
        x0 = np.asarray(denoise(x, levels[call]))
        eps = (x - x0) / levels[call]
        outputs = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alphas[call] * (eps - levels[call] * x0),
        }
        output = torch.tensor(outputs[prediction])
        drawn = None if noise is None else torch.tensor(noise[call // calls_per_step], dtype=dtype)
        extra = options(scheduler, call, call == len(alphas) - 2) if options else {}
        with _drawing(scheduler, drawn):
            z = scheduler.step(output.to(dtype), t, z, **extra).prev_sample
    end = np.asarray(z.double()) / keeps[-1]
    if levels[-1] > 0:
        visited.append(end)
    return Run(_reached(scheduler, calls_per_step), np.stack(visited), end)


def _reached(scheduler, calls_per_step):
    """The positive levels at which iterates lie."""
    levels = called_at(scheduler)
    iterates = levels[:-1:calls_per_step]
    return np.append(iterates, levels[-1]) if levels[-1] > 0 else iterates


@contextmanager
def _drawing(scheduler, noise):
    """Let the scheduler draw this noise."""
    with pytest.MonkeyPatch.context() as patch:
        if noise is not None:
            module = sys.modules[type(scheduler).__module__]
            patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
        yield


def require_same(ours: Run, theirs: Run, tolerance: float) -> None:
    """The same iterates at every level, and the same end, in relative error by norm."""
    assert ours.iterates.shape == theirs.iterates.shape
    for i, (one, other) in enumerate(zip(ours.iterates, theirs.iterates, strict=True)):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error <= tolerance, f"iterate {i} of {len(ours.iterates)} differs by {error:.2g}"
    error = np.linalg.norm(ours.end - theirs.end) / np.linalg.norm(theirs.end)
    assert error <= tolerance, f"the end differs by {error:.2g}"


class Parity(NamedTuple):
    """Our samplers beside the schedulers of diffusers, on one problem from the same starts."""

    problem: Any
    keys: Any
    denoise: Callable[[np.ndarray, float], np.ndarray]

    def __call__(
        self,
        name: str,
        sampler,
        case: Case,
        *,
        tolerance: float = 1e-9,
        as_shipped: float = 1e-4,
        noisy: bool = False,
        prediction: str = "epsilon",
        patch: Patch | None = None,
        calls_per_step: int = 1,
        options: Options | None = None,
        to_zero: Ending = last_denoising,
        **config,
    ) -> tuple[Run, Run, Run]:
        """Require that our iterates at every positive level, and our end, are those of the
        scheduler `name` when it computes in float64, and when it is as shipped.

        Args:
          sampler: ours.
          tolerance, as_shipped: relative errors by norm.
          noisy: let it draw the noise that our samplers add.
          prediction: what the model puts out, where the scheduler has no choice.
          patch, calls_per_step, options: see `Patch` and `run`.
          to_zero: how ours ends where the scheduler ends at zero.
          config: of the scheduler, besides the case's.

        Returns: our run, theirs in float64, theirs as shipped.
        """
        settings = {"patch": patch} | case.config | config
        how = {"calls_per_step": calls_per_step, "options": options}
        how["prediction"] = case.prediction or prediction
        with in_float64(name), _tensors_in_numpy():
            scheduler = create(name, case.steps, **settings)
            levels = jnp.asarray(_reached(scheduler, calls_per_step))
            x = self.problem.prior(self.keys, levels[0])
            how["noise"] = self.noise(levels) if noisy else None
            theirs = run(scheduler, self.denoise, x, **how)
            stops = called_at(scheduler)[-1] > 0
        with _tensors_in_numpy():
            shipped = run(create(name, case.steps, **settings), self.denoise, x, **how)
        ours = self.ours(sampler, levels, x, finish=identity if stops else to_zero)
        require_same(ours, theirs, tolerance)
        require_same(ours, shipped, as_shipped)
        return ours, theirs, shipped

    def ours(self, sampler, levels, x, finish=identity) -> Run:
        """Our own run on these levels."""
        end, trace = sample(
            self.problem,
            sampler,
            levels,
            self.keys,
            x=x,
            finish=finish,
            observe=lambda step: step.x_next,
        )
        iterates = np.concatenate([x[None], trace.observed])
        return Run(np.asarray(levels), iterates, np.asarray(end))

    def noise(self, levels):
        """The z that our samplers add at each step, read off a run in which nothing but noise moves
        the iterate; and zero on the step to zero."""
        x = jnp.zeros_like(self.problem.prior(self.keys, levels[0]))
        moves = np.diff(self.ours(ONLY_NOISE, levels, x).iterates, axis=0)
        z = moves / np.asarray(levels)[1:, None, None]
        return np.concatenate([z, np.zeros_like(x)[None]])


def _stay(eps, state, x=None, **unused):
    return jnp.zeros_like(eps), state


ONLY_NOISE = renoise(
    optax.GradientTransformationExtraArgs(optax.init_empty_state, _stay),
    lambda sigma, sigma_next: 0.0 * sigma_next,
)
