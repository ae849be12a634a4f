"""Checkpoints: what is saved comes back, whatever happens to the process that saves."""

import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import assert_same, parameters

from optdiff.learning import checkpoints as module
from optdiff.learning.checkpoints import DIGESTS, Checkpoints, SaveError
from optdiff.learning.layouts import all_devices, replicated
from optdiff.learning.step import initial_state


def state_of(step, params=None, optimizer=None):
    params = parameters() if params is None else params
    optimizer = optax.adamw(1e-3) if optimizer is None else optimizer
    state = initial_state(params, optimizer, 7, all_devices(), replicated)
    return state._replace(
        step=jnp.array(step, jnp.int32), params=jax.tree.map(lambda x: x + step, state.params)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """With checkpoints of the steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in range(4):
            checkpoints.save(state_of(step), position_of(step))
    return folder


def position_of(step):
    return {"shard": step, "seen": [1, {"row": "a"}]}


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of them."""
    return shutil.copytree(saved, tmp_path / "copy")


def test_the_newest_comes_back_bit_for_bit(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        state, position = checkpoints.restore(state_of(0))
    assert_same(state, state_of(3))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(0))
    assert position == position_of(3)


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


def flipped(file, share=0.5):
    """One bit is another, this far into the file."""
    data = bytearray(file.read_bytes() or b" ")
    data[int(share * len(data))] ^= 4
    file.write_bytes(data)


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file):
    file.write_bytes(b"")


def longer(file):
    file.write_bytes(file.read_bytes() + b"0")


def a_folder(file):
    file.unlink()
    file.mkdir()


def restored(folder):
    """The step that is restored, bit for bit as it was saved, and what was said."""
    with warnings.catch_warnings(record=True) as said, Checkpoints(folder) as checkpoints:
        warnings.simplefilter("always")
        state, position = checkpoints.restore(state_of(0))
    step = int(state.step)
    assert_same(state, state_of(step))
    assert position == position_of(step)
    return step, [str(warning.message) for warning in said]


def files_of(checkpoint):
    return [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]


WAYS = [flipped, halved, emptied, longer, Path.unlink, a_folder]


def damaged(saved, number, way, folder):
    """A copy of the checkpoints with this file of the newest damaged; its name, and whether it is
    another than before."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    file = files_of(folder / "3")[number]
    before = file.read_bytes()
    way(file)
    return file.name, not file.is_file() or file.read_bytes() != before


def test_a_checkpoint_with_a_damaged_file_is_not_taken_but_the_one_before(saved, tmp_path, capfd):
    """And one line says so, that of nobody else: nothing of it is read."""
    for number in range(len(files_of(saved / "3"))):
        way = WAYS[number % len(WAYS)]
        name, another = damaged(saved, number, way, tmp_path / "copy")
        step, said = restored(tmp_path / "copy")
        if another and name != DIGESTS:
            (line,) = said
            assert step == 2 and "\n" not in line and "copy/3: passed over" in line
            assert f"{name}' is not what was written" in line
    assert "Traceback" not in (err := capfd.readouterr().err) and "ERROR" not in err


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_damage_every_file(saved, tmp_path, way):
    """The file of digests may be empty or gone: what it says nothing of is as it was written."""
    for number in range(len(files_of(saved / "3"))):
        name, another = damaged(saved, number, way, tmp_path / "copy")
        step, said = restored(tmp_path / "copy")
        assert (step, len(said)) == ((2, 1) if another else (3, 0)) or name == DIGESTS


def test_wherever_a_bit_is_flipped_it_is_seen(folder):
    assert not module._fault(folder / "3")
    for file in files_of(folder / "3"):
        whole = file.read_bytes()
        for i in range(12):
            flipped(file, i / 12)
            assert module._fault(folder / "3")
            file.write_bytes(whole)


def test_digests_are_those_of_another_program(saved):
    """Which anyone can check a checkpoint with."""
    done = subprocess.run(["sha256sum", "--check", "--quiet", DIGESTS], cwd=saved / "3")
    listed = (saved / "3" / DIGESTS).read_text().count("\n")
    assert done.returncode == 0 and listed == len(files_of(saved / "3")) - 1


def test_a_checkpoint_from_before_there_were_digests_is_read(folder):
    """Half of one too is passed over."""
    (folder / "3" / DIGESTS).unlink()
    assert restored(folder) == (3, [])
    shutil.rmtree(folder / "3/state")
    step, (said,) = restored(folder)
    assert step == 2 and "\n" not in said and len(said) < 400


def test_a_checkpoint_that_is_passed_over_crowds_out_no_other(folder):
    flipped(folder / "3/_CHECKPOINT_METADATA")
    for step in (1, 2):
        shutil.rmtree(folder / str(step))
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state_of(2), position_of(2))
    assert restored(folder)[0] == 2


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


def test_what_cannot_be_written_is_one_line_and_leaves_what_was(tmp_path, capfd):
    """Files may not grow past 64 KiB, which to who writes is as good as a full disk."""
    large = {"w": np.random.default_rng(0).normal(size=2**17).astype(np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(SaveError, match=r"/2 could not be written \(.*File too large") as error,
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_of(1, large), 1)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        checkpoints.save(state_of(2, large), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and "Traceback" not in capfd.readouterr().err
    with Checkpoints(tmp_path) as checkpoints:
        state, position = checkpoints.restore(state_of(0, large))
    assert position == 1
    assert_same(state, state_of(1, large))


def test_what_a_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch, capfd):
    """A disk of 20 kB, which Orbax would meet with a traceback for each array."""
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), position_of(1))
        checkpoints.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
        with pytest.raises(SaveError, match=r"/2 could .*: it takes up to 1\.\d MB, and 0\.0 are"):
            checkpoints.save(state_of(2), position_of(2))
    assert [path.name for path in tmp_path.iterdir()] == [
        "1"
    ] and "Traceback" not in capfd.readouterr().err
    assert restored(tmp_path) == (1, [])


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
