"""Checkpoints: what is saved comes back, whatever happens to the process that saves."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import assert_same, parameters

from optdiff.learning import checkpoints as module
from optdiff.learning.checkpoints import Checkpoints
from optdiff.learning.layouts import all_devices, replicated
from optdiff.learning.step import initial_state


def state_of(step, params=None, optimizer=None):
    params = parameters() if params is None else params
    optimizer = optax.adamw(1e-3) if optimizer is None else optimizer
    state = initial_state(params, optimizer, 7, all_devices(), replicated)
    return state._replace(
        step=jnp.array(step, jnp.int32), params=jax.tree.map(lambda x: x + step, state.params)
    )


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of the steps 1, 2 and 3."""
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in range(4):
            checkpoints.save(state_of(step), {"shard": step, "seen": [1, {"row": "a"}]})
    return tmp_path


def test_the_newest_comes_back_bit_for_bit(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        state, position = checkpoints.restore(state_of(0))
    assert_same(state, state_of(3))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(0))
    assert position == {"shard": 3, "seen": [1, {"row": "a"}]}


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The next step may write over the state while it is still being written to disk."""
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    large = {"w": np.arange(2.0**20, dtype=np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        state = state_of(5, large)._replace(key=None)
        checkpoints.save(state, 0)
        for _ in range(3):
            state = spoil(state)
    with Checkpoints(tmp_path) as checkpoints:
        kept, _ = checkpoints.restore(state_of(0, large)._replace(key=None))
    np.testing.assert_array_equal(kept.params["w"], large["w"] + 5)


def test_a_checkpoint_that_cannot_be_read_is_passed_over_and_replaced(folder):
    for file in (folder / "3" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 64:
            file.write_bytes(file.read_bytes()[:64])
    with Checkpoints(folder) as checkpoints:
        with pytest.warns(UserWarning, match="3: passed over"):
            state, position = checkpoints.restore(state_of(0))
        assert_same(state, state_of(2))
        assert position["shard"] == 2
        checkpoints.save(state_of(3), "again")
    with Checkpoints(folder) as checkpoints:
        state, position = checkpoints.restore(state_of(0))
    assert_same(state, state_of(3))
    assert position == "again"


@pytest.mark.parametrize(
    "like",
    [
        lambda: state_of(0, {"w": np.zeros((4, 9), np.float32), "b": np.zeros(8, np.float32)}),
        lambda: state_of(0, {"w": np.zeros((4, 8), np.float32)}),
        lambda: state_of(0, optimizer=optax.sgd(0.1, momentum=0.9)),
    ],
    ids=["shape", "name", "optimizer"],
)
@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from Orbax
def test_another_network_or_optimizer_does_not_go_on(folder, like):
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match="no checkpoint could be restored"),
    ):
        checkpoints.restore(like())


def test_where_nothing_was_saved_nothing_is_restored(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(state_of(0)) is None


@pytest.mark.parametrize("other, fits", [("here", True), ("there", False)])
def test_positions_of_more_processes_fit_if_they_agree(tmp_path, monkeypatch, other, fits):
    monkeypatch.setattr(module, "_of_every_process", lambda position: [position, other])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), "here")
        checkpoints.wait()
        if fits:
            assert checkpoints.restore(state_of(0))[1] == "here"
        else:
            with pytest.raises(ValueError, match="saved by 2 processes"):
                checkpoints.restore(state_of(0))


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_checkpoint_before(tmp_path):
    """Each child restores what those killed before it left, and checks it bit for bit."""
    program = Path(__file__).with_name("killed_saves.py")
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills, saved, torn = map(int, done.stdout.split())
    assert kills >= 20 and saved >= kills / 4
    assert torn >= kills / 4, "too few of the kills were in the middle of a save to show anything"
