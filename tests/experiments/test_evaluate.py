"""One Hydra job is one row: sweeps, resume, failures, and names that are mistyped."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optdiff import results

SCRIPT = Path(__file__).parents[2] / "experiments/evaluate.py"
SMALL = ("problem=gaussian", "problem.dim=3", "samples=16", "keep=2", "study=mine")


def rows(tmp_path):
    log = results.load(tmp_path / "results/mine")
    return {(r["sampler"], r["nfe_asked"], r["seed"]): r for r in log}


def test_a_single_run_prints_its_metrics_and_leaves_a_row(command, tmp_path):
    done = command(*SMALL, "sampler=ddim", "nfe=4")
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path).values()
    for name, value in row["metrics"].items():
        assert name in done.stdout and np.isfinite(value)
    assert {"w2", "gelbrich", "trajectory_error"} <= set(row["metrics"])
    assert row["nfe"] == row["passes"] == 4 and len(row["levels"]) == 4
    assert row["config"]["sampler"]["_target_"] == "optdiff.samplers.ddim"
    again = command(*SMALL, "sampler=ddim", "nfe=4")
    assert again.returncode == 0 and again.stdout.startswith(done.stdout.rstrip())
    assert "done before; refresh=all" in again.stdout and len(rows(tmp_path)) == 1
    artifact = results.load_artifact(tmp_path / "results/mine", row["key"])
    assert artifact["samples"].shape == (2, 3) and artifact["gradient_norm"].shape == (3, 2)


def test_a_sweep_skips_what_is_done_and_retries_what_failed(evaluate, tmp_path):
    sweep = ("-m", *SMALL, "nfe=3,4", "seed=0,1")
    # A constant learning rate far too large overflows: a row of its own, and siblings go on.
    wild = ("sampler=optimizer", "sampler.optimizer.learning_rate=1e30")
    rule = "sampler.rule._target_=optdiff.samplers.constant"
    failed = evaluate(*sweep, *wild, rule)
    assert failed.returncode == 1 and "✗" in failed.stdout
    assert {r["status"] for r in rows(tmp_path).values()} == {"failed"}
    assert "not finite" in next(iter(rows(tmp_path).values()))["error"]

    done = evaluate(*sweep, "sampler=ddim,euler")
    assert done.returncode == 0, done.stderr
    log = tmp_path / "results/mine/rows.jsonl"
    before = log.read_text().splitlines()
    assert len(before) == 4 + 8  # one sampler, but a row under each of its names
    again = evaluate(*sweep, "sampler=ddim,euler")
    assert again.returncode == 0 and log.read_text().splitlines() == before
    evaluate(*sweep, *wild, rule)
    assert len(log.read_text().splitlines()) == len(before) + 4  # the failed ones, once more
    for name in ("table.md", "table.csv", "figure.svg", "samples.png"):
        assert (tmp_path / "results/mine" / name).stat().st_size > 0


def test_a_metric_that_refuses_costs_itself_alone_and_nothing_is_drawn_for_none(evaluate, tmp_path):
    few = ("problem=digits", "samples=4", "keep=2", "study=mine", "sampler=ddim", "exact.levels=3")
    done = evaluate(*few, "nfe=2")
    assert done.returncode == 0 and "prdc: " in done.stdout
    (row,) = rows(tmp_path).values()
    assert row["status"] == "ok" and set(row["refused"]) == {"frechet", "prdc"}
    assert {"trajectory_error", "sliced_w2", "mmd"} <= set(row["metrics"])
    metrics = ("trajectory_error", "sliced_w2", "energy_distance", "mmd")
    assert evaluate(*few, "nfe=3", *(f"~metrics.{name}" for name in metrics)).returncode == 1
    row = rows(tmp_path)["ddim", 3, 0]
    assert "prdc: " in row["error"] and row["nfe"] is None  # before a sample was drawn


@pytest.mark.slow
def test_stale_rows_run_again_when_asked(evaluate, tmp_path):
    evaluate(*SMALL, "nfe=2")
    log = tmp_path / "results/mine/rows.jsonl"
    row = json.loads(log.read_text())
    log.write_text(json.dumps(row | {"source": "another"}) + "\n")
    assert evaluate(*SMALL, "nfe=2").returncode == 0
    assert len(log.read_text().splitlines()) == 1
    evaluate(*SMALL, "nfe=2", "refresh=stale")
    assert len(log.read_text().splitlines()) == 2
    assert results.load(log.parent)[0]["source"] == row["source"]


@pytest.mark.slow
def test_parallel_processes_make_the_same_rows(command, tmp_path):
    sweep = ("-m", *SMALL, "sampler=ddim,ancestral", "nfe=2,3")
    assert command(*sweep).returncode == 0
    one = rows(tmp_path)
    (tmp_path / "results/mine/rows.jsonl").unlink()
    done = command(*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    other = rows(tmp_path)
    assert one.keys() == other.keys()
    for job in one:
        assert one[job]["key"] == other[job]["key"]
        assert one[job]["metrics"] == pytest.approx(other[job]["metrics"], rel=1e-5)


@pytest.mark.slow
def test_two_sweeps_in_one_study_share_its_jobs(tmp_path):
    command = [sys.executable, SCRIPT, "-m", *SMALL, "nfe=1,2,3", "seed=0,1,2,3"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(300) for p in both] == [0, 0]
    assert len(list((tmp_path / "outputs").iterdir())) == 2
    lines = (tmp_path / "results/mine/rows.jsonl").read_text().splitlines()
    assert len(lines) == len(rows(tmp_path)) == 12


def test_yamls_of_ones_own_and_optimizers_without_a_file(evaluate, tmp_path):
    own = tmp_path / "own/sampler"
    own.mkdir(parents=True)
    (own / "gentle.yaml").write_text("_target_: optdiff.samplers.momentum\nbeta: 0.1\n")
    done = evaluate("--config-dir", "own", *SMALL, "sampler=gentle", "nfe=3")
    assert done.returncode == 0, done.stderr
    lion = ("sampler.optimizer._target_=optax.lion", "sampler.optimizer.learning_rate=0.5")
    assert evaluate(*SMALL, "sampler=optimizer", *lion, "nfe=3").returncode == 0
    labels = {sampler for sampler, _, _ in rows(tmp_path)}
    assert labels == {"gentle", "optimizer(optax.lion, learning_rate=0.5)"}


def test_the_sweep_of_one_process_compiles_the_network_once(command):
    sweep = ("-m", *SMALL, "sampler=ddim,heun,ipndm,momentum", "nfe=3,4,6", "seed=0,1")
    done = command(*sweep, JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"Finished XLA compilation of (\S+)", done.stderr)
    assert "jit(_fold_in)" in compiled or "jit(fold_in)" in compiled  # names are seen at all
    # The other shapes are affine's probes of the network, for the exact W2: all in one batch.
    assert compiled.count("jit(eps_at)") == 2


KILLS = 4
"""Each costs the start of a process; more by hand, with as many more SEEDS."""
SEEDS = 5


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_loses_no_row(tmp_path):
    sweep = ["-m", *SMALL, "sampler=ddim,heun,ipndm", "nfe=1,2,3,4"]
    command = [sys.executable, SCRIPT, *sweep, "seed=" + ",".join(map(str, range(SEEDS)))]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    log, chance = tmp_path / "results/mine/rows.jsonl", random.Random(0)
    kept: dict[str, str] = {}

    def lines() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    for _ in range(KILLS):
        process = subprocess.Popen(command, **quiet)
        enough = lines() + chance.randint(1, 4)  # rows, not seconds: machines differ
        while process.poll() is None and lines() < enough:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        assert process.poll() is None, "the sweep ended before its last kill"
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {row["key"]: json.dumps(row, sort_keys=True) for row in results.load(log.parent)}
        assert kept.items() <= now.items()
        kept = now
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in log.read_text().splitlines()]
    keys = [row["key"] for row in found]
    assert len(keys) == len(set(keys)) == 3 * 4 * SEEDS
    assert all(row["status"] == "ok" for row in found)
    assert {p.stem for p in (log.parent / "artifacts").glob("*.npz")} == set(keys)
