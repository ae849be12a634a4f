"""Runs in processes of their own: killed and resumed, on more devices, in two processes at once.

The runs are `small_run.py`; what they leave in their folders is compared.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optdiff.learning.curves import read as read_curves

PROGRAM = Path(__file__).with_name("small_run.py")

pytestmark = pytest.mark.slow


def start(folder, steps, devices=1, **options):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, PROGRAM, folder, str(steps), *(f"{k}={v}" for k, v in options.items())],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def start_both(folder, steps, **options):
    """The same run in two processes that share it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(folder, steps, host=i, hosts=2, port=port, **options) for i in range(2)]


def curves(folder):
    """Rows without their times."""
    rows = read_curves(folder / "curves.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def assert_agree(one, other):
    """Losses (and the other metrics) of every step within 1e-5."""
    one, other = curves(one), curves(other)
    assert [row["step"] for row in one] == [row["step"] for row in other] == [*range(1, 21)]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """20 steps on one device, each with a row."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, 20, log_every=1))
    return folder


def test_killed_and_resumed_is_never_stopped(tmp_path):
    """SIGKILL at any moment, then SIGTERM, then the rest: bit for bit the run without them."""
    every = {"log_every": 3, "save_every": 10}
    finish(start(tmp_path / "whole", 60, **every))
    killed = start(tmp_path / "parts", 60, pause=0.02, **every)
    wait_for(tmp_path / "parts" / "checkpoints" / "20", killed)
    killed.kill()
    killed.communicate()
    asked = start(tmp_path / "parts", 60, pause=0.02, **every)
    wait_for(tmp_path / "parts" / "checkpoints" / "40", asked)
    asked.send_signal(signal.SIGTERM)
    _, said = asked.communicate()
    assert asked.returncode == 128 + signal.SIGTERM and "run the same command again" in said
    finish(start(tmp_path / "parts", 60, **every))

    whole, parts = (np.load(tmp_path / name / "state.npz") for name in ("whole", "parts"))
    assert [*whole] == [*parts]
    for name in whole:
        assert whole[name].tobytes() == parts[name].tobytes()
    steps = [row["step"] for row in curves(tmp_path / "parts")]
    assert steps == sorted({*steps}) and {*range(3, 60, 3), 60} <= {*steps}


def test_eight_devices_learn_what_one_does(alone, tmp_path):
    finish(start(tmp_path, 20, devices=8, log_every=1))
    assert_agree(alone, tmp_path)


def test_what_eight_devices_share_out_one_can_go_on_with(alone, tmp_path):
    finish(start(tmp_path, 12, devices=8, layout="sharded", log_every=1))
    finish(start(tmp_path, 20, log_every=1))
    assert_agree(alone, tmp_path)


def test_two_processes_learn_what_one_does(alone, tmp_path):
    """Sharing out the weights too, with a SIGTERM to one, which stops both at the same step, and
    with that step's checkpoint damaged, which both pass over."""
    options = {"layout": "sharded", "log_every": 1, "save_every": 5}
    for process in start_both(tmp_path, 20, stop=9, **options):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM, said
    saved = (tmp_path / "checkpoints").iterdir()
    *_, before, newest = sorted(saved, key=lambda path: int(path.name))
    next(newest.glob("state/d/*")).write_bytes(b"not this")
    for process in start_both(tmp_path, 20, **options):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0 and f"{newest}: passed over" in said, said
        assert f"{before}: passed over" not in said
    assert_agree(alone, tmp_path)
    finish(start(tmp_path, 20))  # one process reads what the two have saved
    one, two = (np.load(folder / "state.npz") for folder in (alone, tmp_path))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6)
