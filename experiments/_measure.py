"""One job, from its configuration to the numbers and pictures of its row."""

import json
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import _jobs
import jax
import jax.numpy as jnp
import numpy as np
from _build import build, build_once, constructed, text
from _device import device
from _errors import ConfigError
from threadpoolctl import threadpool_limits

from optdiff import provenance, results
from optdiff.analysis import diagnostics, evaluation, measuring
from optdiff.cost import levels_within
from optdiff.sample import Trace, sample_keys, start
from optdiff.types import Clock, Levels, Sampler, Samples, level_at


def measure(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample and measure: the fields of a row that a job finds out, and its artifact.

    Raises:
      ValueError: before sampling, if no metric can be measured.
    """
    problem, metrics = build_once(text(config["problem"])), build_once(text(config["metrics"]))
    sampler, grid, clock = (build_once(text(config[name])) for name in ("sampler", "grid", "clock"))
    shape = sample_shape(text(config["problem"]))
    levels = grid(problem.schedule, levels_within(sampler, config["nfe"], shape))
    setting = share(_jobs.shared(config), float(level_at(levels, 0)))
    metrics = {name: metric for name, metric in metrics.items() if name not in setting.refused}
    if not metrics:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in setting.refused.items()))

    drawn = draw(config, problem, sampler, levels, clock)
    fields = {
        "levels": levels,
        "nfe": drawn.nfe,
        "passes": drawn.nfe * getattr(problem, "passes", 1),
        "batch_nfe": float(drawn.trace.batch_nfe),
        "unfinished": int(np.sum(~np.asarray(drawn.trace.finished))),
        "floor": setting.floor,
        "seconds_compile": drawn.seconds.compiling,
        "seconds_run": drawn.seconds.wall - drawn.seconds.compiling,
    }
    images = problem.decode(drawn.x0)
    fields |= score(metrics, setting, measuring.Measured(
        problem, images, x0=drawn.x0, sampler=sampler, levels=levels, clock=drawn.clock
    ))  # fmt: skip
    return fields, artifact(images, setting, drawn.trace, config["keep"])


class Drawn(NamedTuple):
    """What sampling left."""

    x0: Samples
    trace: Trace
    clock: Clock
    seconds: "Stopwatch"

    @property
    def nfe(self) -> float:
        return float(np.mean(self.trace.nfe))


def draw(
    config: Mapping[str, Any], problem: Any, sampler: Sampler, levels: Levels, clock: Any
) -> Drawn:
    """Draw the samples of a job, its clock started on its levels."""
    size = {name: config[name] for name in ("seed", "samples", "batch")}
    observe = partial(diagnostics.observe, samples=config["keep"])
    with Stopwatch() as seconds:
        clock = clock(levels)
        x0, trace = evaluation.draw(problem, sampler, levels, clock=clock, observe=observe, **size)
        x0.block_until_ready()
    return Drawn(x0, trace, clock, seconds)


def score(
    metrics: measuring.Metrics, setting: evaluation.Setting, measured: measuring.Measured
) -> dict[str, Any]:
    """What the metrics say of samples beside those that are shared."""
    measured = measured._replace(
        reference=setting.reference,
        cond=setting.cond,
        exact=setting.exact_images,
        x0_exact=setting.exact,
    )
    # The metrics are many small steps, between which a second BLAS thread mostly waits.
    with Stopwatch() as seconds, threadpool_limits(1):
        scores = measuring.measure(metrics, measured)
    return {
        "metrics": scores.values,
        "spread": scores.spread,
        "refused": setting.refused | scores.refused,
        "seconds_metrics": seconds.wall,
    }


def artifact(
    images: Samples, setting: evaluation.Setting, trace: Trace, keep: int
) -> dict[str, Any]:
    """The first images of a job, those that they are compared with, and how sampling went."""
    pictures = {
        "samples": images,
        "exact": setting.exact_images,
        "reference": setting.reference,
        "words": setting.words,
    }
    pictures = {name: shown[:keep] for name, shown in pictures.items() if shown is not None}
    steps = jax.tree.leaves(trace.observed)[0].shape[0]
    return pictures | (diagnostics.diagnose(trace.observed)._asdict() if steps else {})


def built_problem(config: Mapping[str, Any]) -> Any:
    """The problem of a job.

    Raises:
      ConfigError: if it cannot be built, or JAX cannot look into it.
    """
    problem = constructed("problem", config)
    for leaf in jax.tree.leaves(problem):
        try:
            jax.dtypes.result_type(leaf)
        except TypeError:
            raise ConfigError(
                f"problem: {type(leaf).__name__} is no pytree of arrays; "
                "jax.tree_util.register_dataclass makes it one"
            ) from None
    return problem


@lru_cache(maxsize=2)  # sweeps go through one after another
def share(shared: str, sigma: float) -> Any:
    """What the jobs of a comparison share, made by the first of them; see `analysis.evaluation`."""
    config = json.loads(shared)
    size = {k: config[k] for k in ("seed", "samples", "batch")}
    exact = config["exact"]
    solver = evaluation.Solver(build(exact["sampler"]), build(exact["grid"]), exact["levels"])
    depends = {**config, "sigma": sigma, **provenance.provenance(device()), "time": None}
    depends = {k: depends[k] for k in depends if k not in ("metrics", "batch", "commit", "dirty")}
    depends |= _jobs.together(config)
    if path := config["problem"].get("path"):  # a model that was learnt anew in its old place
        depends["files"] = provenance.stamp(path)
    return evaluation.setting(
        build_once(text(config["problem"])),
        build_once(text(config["metrics"])),
        sigma=sigma,
        solver=solver,
        remember=lambda compute: results.remember(_jobs.RESULTS / ".cache", depends, compute),
        **size,
    )


class Stopwatch:
    """Seconds that pass inside a `with`, and those of them that JAX spends compiling."""

    def __enter__(self) -> "Stopwatch":
        self.compiling, self.began = 0.0, time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.wall = time.perf_counter() - self.began
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **about: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compiling += seconds


@lru_cache(maxsize=16)
def sample_shape(problem_config: str) -> tuple[int, ...]:
    """The shape of one sample of a problem."""
    problem = build_once(problem_config)
    keys = sample_keys(0, 1)
    x = jax.eval_shape(lambda p: start(p, keys, jnp.ones(()), p.condition(keys)), problem)
    return x.shape[1:]
