"""Benchmarks: where the time goes. The first argument names one of conf/benchmark.

python experiments/benchmark.py sweep
python experiments/benchmark.py network size=sd15 batch=1
python experiments/benchmark.py training
python experiments/benchmark.py many
python experiments/benchmark.py loop
python experiments/benchmark.py growth
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
import optax
from _build import build
from _growth import growth
from _many import many, seconds
from _network import network
from _training import training
from omegaconf import DictConfig, OmegaConf

from optdiff.analysis.measuring import Measured, measure
from optdiff.grids import karras
from optdiff.learning.loop import train
from optdiff.sample import eps_at, sample, sample_keys, start
from optdiff.types import Stream

EXPERIMENTS = Path(__file__).parent


def sweep(config: dict[str, Any]) -> None:
    """Print what a sweep spends on the driver, the metrics, and Hydra with the rows."""
    problem, metrics = build(config["problem"]), build(config["metrics"])
    levels = karras(problem.schedule, config["levels"])
    keys = sample_keys(0, config["samples"])
    x = start(problem, keys, levels[0])
    yamls = hydra.compose(overrides=[f"+sampler@{name}={name}" for name in config["samplers"]])
    samplers = {name: build(OmegaConf.to_container(yaml)) for name, yaml in yamls.items()}

    print(f"{config['samples']} samples, {config['levels']} levels, median of {config['repeats']}")
    for name, sampler in samplers.items():
        nfe = int(sample(problem, sampler, levels, keys, x=x)[1].nfe[0])  # and compile
        pairs = [
            (
                seconds(lambda: sample(problem, sampler, levels, keys, x=x)[0]),  # noqa: B023
                seconds(lambda: [eps_at(problem, None, x, levels[0]) for _ in range(nfe)]),  # noqa: B023
            )
            for _ in range(config["repeats"])
        ]
        whole, calls = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        print(f"  {name:20} {whole:7.3f} s, its {nfe} evaluations {calls:7.3f} s: x {ratio:.2f}")

    samples = problem.decode(sample(problem, samplers["ddim"], levels, keys, x=x)[0])
    reference = problem.reference(keys)
    measured = Measured(problem, samples, reference, exact=samples)
    measure(metrics, measured)
    measuring = median(
        seconds(lambda: measure(metrics, measured)) for _ in range(config["repeats"])
    )
    print(f"  metrics              {measuring:7.3f} s a job")
    print(f"  Hydra and rows       {bookkeeping(config['jobs']):7.3f} s a job")


def loop(config: dict[str, Any]) -> None:
    """Print what the training loop itself costs the thread that dispatches: its own seconds, which
    do not count the others' work, between two steps of a task that is next to nothing."""
    seen = []

    def loss(params, frozen, batch, key):
        return jnp.mean((batch["x"] @ params["w"]) ** 2), {}

    with tempfile.TemporaryDirectory() as folder:
        train(
            loss,
            {"w": np.ones((4, 8), np.float32)},
            Stream(0, lambda i: ({"x": np.ones((8, 4), np.float32)}, i + 1)),
            optax.adamw(1e-2),
            steps=config["steps"],
            folder=folder,
            save_every=config["steps"],
            watch=lambda ema, step: seen.append((step, time.thread_time())) or {},
            watch_every=config["steps"] // 10,
        )
    (first, began), *_, (last, ended) = seen
    print(f"the loop costs the host {1e3 * (ended - began) / (last - first):.2f} ms a step")


def bookkeeping(jobs: int) -> float:
    """Seconds a job for composing its configuration, and for its row: what is left of a sweep
    whose sampling costs nothing, per job that is added to it."""

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            script = EXPERIMENTS.resolve() / "evaluate.py"
            seeds = ",".join(map(str, range(count)))
            tiny = ["problem=gaussian", "metrics=trajectory", "samples=1", "keep=1", "nfe=1"]
            command = [sys.executable, script, "-m", *tiny, f"seed={seeds}"]
            return seconds(
                lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)
            )

    return (run(jobs + 1) - run(1)) / jobs


if __name__ == "__main__":
    benchmarks = {  # each with where its configuration is
        "sweep": (sweep, "../conf", "benchmark/sweep"),
        "network": (network, "../conf/benchmark", "network"),
        "training": (training, "../conf", "benchmark/training"),
        "many": (many, "../conf/benchmark", "many"),
        "loop": (loop, "../conf", "benchmark/loop"),
        "growth": (growth, "../conf", "benchmark/growth"),
    }
    names = [name for name in sys.argv[1:2] if name in benchmarks]
    if not names:
        sys.exit(f"usage: benchmark.py {{{','.join(benchmarks)}}} [key=value ...]")
    sys.argv.remove(names[0])
    benchmark, folder, config_name = benchmarks[names[0]]

    @hydra.main(version_base="1.3", config_path=folder, config_name=config_name)
    def main(config: DictConfig) -> None:
        benchmark(OmegaConf.to_container(config, resolve=True))

    main()
