"""Evaluate samplers: one job is one (problem, sampler, grid, NFE, seed) and appends one row.

python experiments/evaluate.py problem=mixture sampler=ddim nfe=16 seed=0
python experiments/evaluate.py -m sampler=ddim,adam nfe=4,8,16 seed=0,1,2 study=mine
python experiments/evaluate.py -m experiment=few_step
"""

import json
import sys
import time
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from typing import Any

import _jobs
import hydra
import jax
import jax.numpy as jnp
import numpy as np
from _build import build, build_once, constructed, text
from _device import device
from _errors import ConfigError, WriteError
from _sweep import end_with_parent, run, single
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from threadpoolctl import threadpool_limits

from optdiff import provenance, results
from optdiff.allocator import give_back_after_compiling
from optdiff.analysis import diagnostics, evaluation, measuring
from optdiff.cost import levels_within
from optdiff.sample import sample_keys, start


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> str:
    # By import, not from here: joblib ships this file's functions by value, caches and all.
    import evaluate

    end_with_parent()
    about, overrides = HydraConfig.get(), list(HydraConfig.get().overrides.task)
    if single():
        _refuse_lone_sweep(about.sweeper.params or {}, overrides)
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    options = GlobalHydra.instance().config_loader().get_group_options
    return evaluate.run_job(_jobs.job(plain, about.runtime.choices, overrides, options))


def conclude(sweep: bool) -> int:
    """Print the tables of a sweep; the exit code, 0 if every job asked for has a row that is ok."""
    bad = False
    for study, jobs in _jobs.asked.items():
        folder = _jobs.RESULTS / study
        bad |= not jobs <= results.finished(folder)
        if sweep and (folder / "rows.jsonl").exists():
            from optdiff.report import report

            print(report(folder))
    return int(bad)


def _refuse_lone_sweep(params: Mapping[str, Any], overrides: list[str]) -> None:
    """A sweep that was asked for without `-m` would be one job, of the defaults."""
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if left := [name for name in params if name not in typed]:
        command = " ".join(["python", sys.argv[0], "-m", *overrides])
        raise ConfigError(f"this sweeps over {', '.join(left)}, which takes -m: {command}")


def run_job(job: _jobs.Job) -> str:
    """Do one job, unless it is done already. Whatever becomes of it is a row."""
    config = job.config
    if not _jobs.ask(job):
        return "skipped"
    give_back_after_compiling()
    _jobs.construct(job)
    problem = constructed("problem", config["problem"])
    _refuse_no_pytree(problem)
    constructed("metrics", config["metrics"])
    row = dict.fromkeys(results.Row.__annotations__) | {
        "key": job.key,
        "config": config,
        "status": "ok",
        "nfe_asked": config["nfe"],
        "seed": config["seed"],
        "samples": config["samples"],
        **job.names,
        **{"levels": [], "metrics": {}, "spread": {}, "refused": {}, "floor": {}},
    }
    artifact = None
    try:
        measured, artifact = measure(config)
        row |= measured
    except Exception as error:  # of any kind: the row says so, and its siblings go on
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    row |= provenance.provenance(device())
    try:
        row = results.append(_jobs.RESULTS / config["study"], row, artifact)
    except OSError as error:
        raise WriteError(f"results/{config['study']}: {error}") from error
    if single():
        print(summary(row))
    return row["status"]


def _refuse_no_pytree(problem: Any) -> None:
    for leaf in jax.tree.leaves(problem):
        try:
            jax.dtypes.result_type(leaf)
        except TypeError:
            raise ConfigError(
                f"problem: {type(leaf).__name__} is no pytree of arrays; "
                "jax.tree_util.register_dataclass makes it one"
            ) from None


def measure(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample and measure: the fields of a row that a job finds out, and its artifact."""
    sampler, grid, clock = (build(config[group]) for group in ("sampler", "grid", "clock"))
    problem, metrics = build_once(text(config["problem"])), build_once(text(config["metrics"]))
    levels = grid(
        problem.schedule,
        levels_within(sampler, config["nfe"], sample_shape(text(config["problem"]))),
    )
    shared = {k: config[k] for k in ("problem", "metrics", "exact", "seed", "samples", "batch")}
    setting = share(text(shared), float(levels[0]))

    size = {k: config[k] for k in ("seed", "samples", "batch")}
    observe = partial(diagnostics.observe, samples=config["keep"])
    with Stopwatch() as sampling:
        clock = clock(jnp.asarray(levels))
        x0, trace = evaluation.draw(problem, sampler, levels, clock=clock, observe=observe, **size)
        x0.block_until_ready()
    samples, exact = problem.decode(x0), setting.exact_images
    # The metrics are many small steps, between which a second BLAS thread mostly waits.
    with Stopwatch() as scoring, threadpool_limits(1):
        measured = measuring.Measured(
            problem,
            samples,
            reference=setting.reference,
            cond=setting.cond,
            exact=exact,
            x0=x0,
            x0_exact=setting.exact,
            sampler=sampler,
            levels=levels,
            clock=clock,
        )
        scores = measuring.measure(metrics, measured)
    nfe = float(np.mean(trace.nfe))
    row = {
        "levels": levels,
        "nfe": nfe,
        "passes": nfe * getattr(problem, "passes", 1),
        "metrics": scores.values,
        "spread": scores.spread,
        "refused": setting.refused | scores.refused,
        "floor": setting.floor,
        "seconds_compile": sampling.compiling,
        "seconds_run": sampling.wall - sampling.compiling,
        "seconds_metrics": scoring.wall,
    }
    keep = slice(config["keep"])
    pictures = {
        "samples": samples,
        "exact": exact,
        "reference": setting.reference,
        "words": setting.words,
    }
    pictures = {name: shown[keep] for name, shown in pictures.items() if shown is not None}
    path = diagnostics.diagnose(trace.observed)._asdict() if len(levels) > 1 else {}
    return row, pictures | path


@cache
def share(shared: str, sigma: float) -> Any:
    """What the jobs of a comparison share, made by the first of them; see `analysis.evaluation`."""
    config = json.loads(shared)
    size = {k: config[k] for k in ("seed", "samples", "batch")}
    exact = config["exact"]
    solver = evaluation.Solver(build(exact["sampler"]), build(exact["grid"]), exact["levels"])
    depends = {**config, "sigma": sigma, **provenance.provenance(device()), "time": None}
    depends = {k: depends[k] for k in depends if k not in ("metrics", "batch", "commit", "dirty")}
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


@lru_cache
def sample_shape(problem_config: str) -> tuple[int, ...]:
    """The shape of one sample of a problem."""
    problem = build_once(problem_config)
    keys = sample_keys(0, 1)
    x = jax.eval_shape(lambda p: start(p, keys, jnp.ones(()), p.condition(keys)), problem)
    return x.shape[1:]


def summary(row: results.Row) -> str:
    """A row for the eye: one line for each metric, with its floor."""
    head = f"{row['sampler']} on {row['problem']}, {row['grid']} levels, seed {row['seed']}"
    if row["status"] == "failed":
        return f"{head}: {row['error']}"
    lines = [f"{head}: {row['nfe']:g} evaluations, {row['passes']:g} network passes a sample"]
    for name, value in row["metrics"].items():
        floor = f"   (real against real {row['floor'][name]:.4g})" if name in row["floor"] else ""
        lines.append(f"  {name:20} {value:10.4g}{floor}")
    lines += [f"  {name}: {why}" for name, why in row["refused"].items()]
    lines.append(
        f"  {row['seconds_run']:.2f} s sampling, {row['seconds_compile']:.2f} s compiling, "
        f"{row['seconds_metrics']:.2f} s measuring"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, conclude))
