"""What a machine does to a sweep: it ends in one line, with an exit code, and loses no row."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from optdiff import results

SCRIPT = Path(__file__).parents[2] / "experiments/evaluate.py"
SMALL = ("problem=gaussian", "problem.dim=3", "samples=16", "keep=2", "study=mine")


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_(tmp_path, monkeypatch, fault):
    """Bring a fault about: in the folder that a job of this study runs in, or in its disk."""
    log = tmp_path / "results/mine/rows.jsonl"
    if fault == "full disk":
        monkeypatch.setattr(results.log, "_append_line", full)
    elif fault == "log is a folder":
        log.mkdir(parents=True)
    elif fault == "log is no text":
        log.parent.mkdir(parents=True)
        log.write_bytes(b"\xff\xfe\n")
    else:
        (tmp_path / fault).write_text("a file")


@pytest.mark.parametrize("multirun", [[], ["-m"]])
@pytest.mark.parametrize(
    "fault", ["full disk", "log is a folder", "log is no text", "results", "outputs"]
)
def test_what_cannot_be_written_ends_in_one_line(evaluate, tmp_path, monkeypatch, fault, multirun):
    break_(tmp_path, monkeypatch, fault)
    done = evaluate(*multirun, *SMALL, "nfe=1", "sampler=ddim")
    assert done.returncode in (1, 2) and ("mine" in done.stderr or fault in done.stderr)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr


def test_the_table_of_a_finished_sweep_needs_nothing_written(evaluate, tmp_path, monkeypatch):
    sweep = ("-m", *SMALL, "nfe=2", "sampler=ddim")
    table = evaluate(*sweep).stdout
    monkeypatch.setattr(results.log, "_locked", full)
    done = evaluate(*sweep)
    assert done.returncode == 0 and done.stdout == table and "table.md" in done.stderr


@pytest.mark.parametrize("refresh", ["all", "stale"])
def test_a_job_that_another_was_killed_at_is_not_done(evaluate, tmp_path, monkeypatch, refresh):
    sweep, waited = ("-m", *SMALL, "nfe=2", "sampler=ddim"), []
    assert evaluate(*sweep).returncode == 0
    log = tmp_path / "results/mine/rows.jsonl"
    log.write_text(json.dumps(json.loads(log.read_text()) | {"source": "another"}) + "\n")

    @contextmanager
    def another(study, job, *, wait=False):  # holds the job, and ends without a row
        waited.append(wait)
        yield wait

    monkeypatch.setattr(results, "claim", another)
    done = evaluate(*sweep, f"refresh={refresh}")
    assert done.returncode == 1 and "ddim" in done.stdout and waited == [False, True]


@pytest.mark.parametrize("end", [PermissionError(errno.EACCES, "denied"), KeyboardInterrupt()])
def test_a_sweep_that_is_cut_short_draws_what_it_has(evaluate, tmp_path, monkeypatch, end):
    assert evaluate("-m", *SMALL, "nfe=2", "sampler=ddim").returncode == 0
    waited, handler = [], signal.getsignal(signal.SIGINT)

    @contextmanager
    def claim(study, job, *, wait=False):
        waited.append(wait)
        raise end
        yield

    monkeypatch.setattr(results, "claim", claim)
    try:
        done = evaluate("-m", *SMALL, "nfe=2,3", "sampler=ddim")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert done.returncode == (130 if isinstance(end, KeyboardInterrupt) else 1)
    assert "ddim" in done.stdout and "takes up where it stopped" in done.stderr
    assert waited == [False]


def test_a_damaged_artifact_is_made_again(evaluate, tmp_path):
    sweep = ("-m", *SMALL, "nfe=2,3", "sampler=ddim")
    assert evaluate(*sweep).returncode == 0
    artifact, _ = sorted((tmp_path / "results/mine/artifacts").glob("*.npz"))
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[: len(whole) // 2])
    done = evaluate(*sweep)
    assert done.returncode == 0 and done.stderr.count(f"{artifact.name} is damaged") == 1
    assert len((tmp_path / "results/mine/rows.jsonl").read_text().splitlines()) == 3
    assert results.load_artifact(tmp_path / "results/mine", artifact.stem) is not None
    assert "damaged" not in evaluate(*sweep).stderr
    artifact.write_bytes(whole[: len(whole) // 2])
    nfe = {row["key"]: row["nfe_asked"] for row in results.load(tmp_path / "results/mine")}
    other = 5 - nfe[artifact.stem]
    assert "damaged" not in evaluate(*SMALL, f"nfe={other}", "sampler=ddim").stderr


WILD = ("sampler=optimizer", "sampler.optimizer.learning_rate=1e30",
        "sampler.rule._target_=optdiff.samplers.constant")  # fmt: skip


def shell(tmp_path, line, **environment):
    """Run a shell's line, in which $JOB is the start of a command."""
    job = f"{sys.executable} {SCRIPT} -m {' '.join(SMALL)} nfe=3,4"
    environment = os.environ | {"JOB": job} | environment
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, env=environment, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, code",
    [
        ("$JOB sampler=ddim | head -c 0", 1),
        ("PYTHONIOENCODING=ascii $JOB sampler=ddim", 0),
        (f"$JOB {' '.join(WILD)} <&- >&- 2>&-", 1),
    ],
)
def test_the_exit_code_is_that_of_the_rows_whatever_the_streams(tmp_path, line, code):
    done = shell(tmp_path, line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    status = "failed" if "1e30" in line else "ok"
    assert [row["status"] for row in results.load(tmp_path / "results/mine")] == [status, status]


def workers(process):
    """The processes that one has started, by number."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = (map(int, line.split()) for line in table.splitlines())
    return {child for child, parent in pairs if parent == process.pid}


def commandline(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as about:
        return about.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_workers_end_with_the_sweep(tmp_path):
    """By SIGTERM; by SIGKILL is below."""
    seeds = "seed=" + ",".join(map(str, range(200)))
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    command = [sys.executable, SCRIPT, "-m", *SMALL, "nfe=1", seeds, *joblib]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    log = tmp_path / "results/mine/rows.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.05)
    started = workers(process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    time.sleep(2)
    assert started and not any(map(alive, started))
    lines = log.read_bytes()
    time.sleep(1)
    assert log.read_bytes() == lines
    rows = [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]
    assert len({row["key"] for row in rows}) == len(rows) >= 3


@pytest.mark.slow
def test_kills_under_joblib_lose_and_double_no_row(tmp_path):
    """Of the sweep and of its workers by turns, after ever more rows; then it is finished."""
    jobs = 24
    seeds = "seed=" + ",".join(map(str, range(jobs)))
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    command = [sys.executable, SCRIPT, "-m", *SMALL, "nfe=1", seeds, *joblib]
    log, seen = tmp_path / "results/mine/rows.jsonl", set()

    def whole():
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]

    for kill in range(4):
        with open(tmp_path / "said", "w") as said:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
        if kill == 3:
            break
        while len(whole()) < 1 + 6 * kill:
            assert process.poll() is None
            time.sleep(0.01)
        its = [n for n in workers(process) if "popen_loky" in commandline(n)]
        os.kill(its[kill % len(its)] if kill % 2 else process.pid, signal.SIGKILL)
        code = process.wait(60)
        if kill % 2:
            assert code == 1 and "takes up where it stopped" in (tmp_path / "said").read_text()
        time.sleep(2)
        assert its and not any(map(alive, its))
        assert seen <= set(whole())
        seen = set(whole())
    assert process.wait(60) == 0
    keys = whole()
    assert len(keys) == len(set(keys)) == jobs and seen <= set(keys)
    assert all(results.load_artifact(log.parent, key) is not None for key in keys)


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
    seeds = "seed=" + ",".join(map(str, range(200)))
    command = [sys.executable, SCRIPT, "-m", *SMALL, "nfe=1", seeds]
    log, said = tmp_path / "results/mine/rows.jsonl", tmp_path / "said"
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # as from a terminal:
    with open(said, "w") as stderr:  # what a shell begins in the background begins deaf to it
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=stderr, stderr=stderr, preexec_fn=heard
        )
    for when in (
        lambda: log.exists() and log.read_bytes(),
        lambda: "interrupted" in said.read_text(),
    ):
        while not when():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) in (-signal.SIGINT, 130)
    assert "Traceback" not in said.read_text()
    assert len(results.load(log.parent)) >= 1
