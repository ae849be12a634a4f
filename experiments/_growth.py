"""`benchmark.py growth`: what a study costs that has grown, and half precision a sample."""

import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import numpy as np
from _build import build
from omegaconf import OmegaConf

from optdiff.grids import karras
from optdiff.results import config_key, load
from optdiff.sample import sample, sample_keys

EXPERIMENTS = Path(__file__).resolve().parent
TINY = ("problem=gaussian", "metrics=trajectory", "samples=1", "keep=1", "study=grown")


def growth(config: dict[str, Any]) -> None:
    """Print the seconds and the memory of a sweep, of the same sweep again, and of reports; then
    how far samples in half precision depend on their number."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "results/grown"
        jobs = ["-m", *TINY, "nfe=range(3,13)", f"seed=range(0,{config['jobs'] // 10})"]
        memory, taken = sweep(folder, study, jobs, config["jobs"])
        early, late = memory
        print(f"{config['jobs']} jobs: {taken:.0f} s; {early:.0f} MB after a tenth, {late:.0f} MB")
        _, taken = sweep(folder, study, jobs, config["jobs"])
        print(f"the same again, all skipped: {taken:.1f} s", flush=True)
        for methods in config["methods"]:
            copies(load(study)[0], study.parent / "many", config["rows"], methods)
            print(f"report of {config['rows']} rows, {methods} methods: {report(folder):.1f} s")
    for name in config["samplers"]:
        print(half(name, config["batches"]), flush=True)


def sweep(folder: str, study: Path, jobs: list[str], count: int) -> tuple[list[float], float]:
    """Run a sweep; the megabytes that it held when a tenth of its rows were there and when it had
    the last, and its seconds."""
    began, memory, rows = time.perf_counter(), [0.0, 0.0], study / "rows.jsonl"
    command = [sys.executable, EXPERIMENTS / "evaluate.py", *jobs]
    with open(Path(folder) / "said", "w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        while process.poll() is None:
            done = rows.read_bytes().count(b"\n") if rows.exists() else 0
            now = resident(process.pid)
            memory = [now if done <= count // 10 else memory[0], now if now else memory[1]]
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError((Path(folder) / "said").read_text()[-2000:])
    return memory, time.perf_counter() - began


def resident(pid: int) -> float:
    """Megabytes that a process holds; 0 where the system does not say, or it has ended."""
    status = Path(f"/proc/{pid}/status")
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS")), 0.0)


def copies(row: dict[str, Any], study: Path, count: int, methods: int) -> None:
    """A study of so many rows of so many methods, by copies of one row with numbers of their own:
    two budgets, and as many seeds as it takes."""
    study.mkdir(parents=True, exist_ok=True)
    draw, lines = np.random.default_rng(0).normal, []
    for i in range(count):
        seed, which = divmod(i, 2 * methods)
        new = copy.deepcopy(row)
        nfe, name = (4, 8)[which % 2], f"method {which // 2}"
        new["config"] |= {"seed": seed, "nfe": nfe, "method": name}
        new |= {"seed": seed, "nfe_asked": nfe, "nfe": float(nfe), "sampler": name}
        new["key"] = config_key(new["config"])
        new["metrics"] = {name: 1.0 + 0.1 * float(draw()) for name in row["metrics"]}
        lines.append(json.dumps(new))
    (study / "rows.jsonl").write_text("\n".join(lines) + "\n")


def report(folder: str) -> float:
    """Seconds of the report's whole command."""
    began = time.perf_counter()
    command = [sys.executable, EXPERIMENTS / "report.py", "study=many"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def half(name: str, batches: list[int], count: int = 8, nfe: int = 6) -> str:
    """How far images in bfloat16 are apart, drawn so many at a time or so many."""
    config = hydra.compose(overrides=["+problem=text_to_image", f"+sampler={name}"])
    config = OmegaConf.to_container(config)
    problem, sampler = build(config["problem"] | {"dtype": "bfloat16"}), build(config["sampler"])
    levels, keys = karras(problem.schedule, nfe), sample_keys(0, count)
    cond = problem.condition(keys)

    def images(batch: int) -> np.ndarray:
        parts = [slice(i, i + batch) for i in range(0, count, batch)]
        drawn = [
            sample(problem, sampler, levels, keys[p], cond=jax.tree.map(lambda c: c[p], cond))[0]  # noqa: B023
            for p in parts
        ]
        return np.asarray(problem.decode(jnp.concatenate(drawn)), np.float32)

    apart = np.abs(np.subtract(*map(images, batches)))
    return (
        f"bfloat16, {name}, {nfe} levels, {count} images of text_to_image drawn {batches[0]} or "
        f"{batches[1]} at a time: up to {apart.max():.3f} apart, {np.sum(apart > 1 / 255)} of "
        f"{apart.size} values by more than 1/255"
    )
