"""The loop in one process: what a step is, what stops it, and that stopping loses nothing.

Compiling is what these tests cost, so that they share runs where they can.
"""

import os
import signal
import struct
import threading
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import assert_same, loss, optimizer, parameters, run, stream
from tensorboardX.proto.event_pb2 import Event

from optdiff.learning import loop
from optdiff.learning.checkpoints import Checkpoints
from optdiff.learning.curves import read as read_curves
from optdiff.learning.interruption import Interrupted, ResumeError
from optdiff.learning.step import State, ema_decay
from optdiff.types import Stream


class Whole(NamedTuple):
    """20 steps that nothing disturbed, and what was seen of them."""

    state: State
    folder: str
    params: dict
    traced: int
    watched: list


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    traced, watched, folder = [], [], tmp_path_factory.mktemp("whole")

    def counted(*arguments):
        traced.append(1)
        return loss(*arguments)

    def watch(ema, step):
        watched.append((step, jax.device_get(ema)))
        return {"score": step / 2, "picture": np.zeros((8, 8, 3), np.uint8)}

    params = jax.tree.map(jnp.asarray, parameters())
    every = {"log_every": 5, "save_every": 4, "watch_every": 12}
    state = run(folder, 20, loss=counted, params=params, watch=watch, **every)
    return Whole(state, folder, params, len(traced), watched)


def events(file):
    """What a file of TensorBoard's holds: records of a length, its checksum, an event, its own."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def raises_at(count, act):
    """A stream that acts before it reads batch `count`."""
    return stream(read=lambda at: act() if at == count else None)


def poisoned(count):
    """A stream whose batch `count` holds a NaN."""
    plain = stream()

    def read(position):
        batch, after = plain.read(position)
        if position["count"] == count:
            batch["x"][0, 0] = np.nan
        return batch, after

    return Stream(plain.start, read)


def assert_close(one, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def test_steps_are_the_optimizers(whole):
    """Against a loop of a few lines around optax."""
    tx, source = optimizer(), stream()

    @jax.jit
    def step(params, state, ema, batch, i):
        key = jax.random.fold_in(jax.random.key(0), i)
        grad = jax.grad(lambda p: loss(p, None, batch, key)[0])(params)
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        d = ((1 + i) / (10 + i)).astype(jnp.float32)
        return params, state, jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)

    params, position = parameters(), source.start
    state, ema = tx.init(params), params
    for i in range(20):
        batch, position = source.read(position)
        params, state, ema = step(params, state, ema, batch, jnp.array(i))
    assert whole.state.step == 20
    assert_close(whole.state.params, params)
    assert_close(whole.state.opt_state, state)
    assert_close(whole.state.ema, ema)


def test_the_callers_parameters_stay_as_they_were(whole):
    jax.tree.map(np.testing.assert_array_equal, whole.params, parameters())


def test_the_loss_is_traced_once(whole):
    assert whole.traced == 1


def test_watch_sees_the_average_and_its_numbers_are_kept(whole):
    assert [step for step, _ in whole.watched] == [12, 20]
    jax.tree.map(np.testing.assert_array_equal, whole.watched[-1][1], whole.state.ema)
    rows = read_curves(whole.folder / "scores.csv")
    assert [(row["step"], row["score"]) for row in rows] == [(12, 6), (20, 10)]


def test_tensorboard_has_the_curves_the_scores_and_the_pictures(whole):
    (file,) = (whole.folder / "tensorboard").iterdir()
    seen = {}
    for event in events(file):
        for value in event.summary.value:
            seen.setdefault(value.tag, []).append(event.step)
    looks = [4, 5, 8, 10, 12, 15, 16, 20]
    assert seen == {
        **{f"train/{name}": looks for name in ("loss", "grad_norm", "size")},
        **{name: [12, 20] for name in ("scores/score", "picture")},
    }


def test_curves_have_a_row_wherever_the_loop_looked(whole):
    rows = read_curves(whole.folder / "curves.csv")
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert [*rows[0]] == ["step", "seconds", "loss", "grad_norm", "size"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert np.all(np.diff([row["seconds"] for row in rows]) > 0)


def test_the_last_checkpoints_are_kept(whole):
    with Checkpoints(whole.folder / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [12, 16, 20]
        state, position = checkpoints.restore(whole.state)
    assert_same(state, whole.state)
    assert position == {"count": 20}


def test_what_is_finished_is_not_run_again(whole):
    unread = raises_at(0, lambda: pytest.fail("the stream was read"))
    assert_same(run(whole.folder, 20, stream=unread), whole.state)


def test_another_seed_does_not_go_on_nor_begin(whole):
    begun = []
    with pytest.raises(ResumeError, match="another seed"):
        run(whole.folder, 21, seed=1, begun=lambda: begun.append(1))
    assert not begun


def test_a_folder_is_the_runs_once_its_first_row_is_written_and_before_it_saves(tmp_path):
    seen = []

    def begun():
        seen.append(
            (len(read_curves(tmp_path / "curves.csv")), *(tmp_path / "checkpoints").iterdir())
        )

    run(tmp_path, 8, log_every=2, begun=begun)
    assert seen == [(1,)]

    def more(params, frozen, batch, key):
        value, others = loss(params, frozen, batch, key)
        return value, others | {"new": value}

    with pytest.raises(ResumeError, match="train into another folder"):
        run(tmp_path, 9, loss=more, begun=begun)
    assert seen == [(1,)]


def test_decay_warms_up_to_the_one_asked_for():
    decays = [float(ema_decay(0.9, jnp.array(t))) for t in (0, 79, 80, 81, 1000)]
    assert decays[0] == pytest.approx(0.1) and decays[1] < 0.9
    assert decays[2:] == pytest.approx([0.9] * 3)


def test_accumulated_batches_are_one_batch_of_all_their_rows():
    """Without noise, which is other noise for each part. And a decay of 0 keeps no average."""
    quiet = lambda *arguments: loss(*arguments, noise=0.0)  # noqa: E731
    large = stream(rows=8)

    def small(position):
        count, part = divmod(position["count"], 4)
        batch, _ = large.read({"count": count})
        rows = slice(2 * part, 2 * part + 2)
        return {name: x[rows] for name, x in batch.items()}, {"count": position["count"] + 1}

    parts = Stream({"count": 0}, small)
    one = run(steps=6, loss=quiet, ema_decay=0.0)
    many = run(steps=6, loss=quiet, ema_decay=0.0, stream=parts, accumulate=4)
    assert_close(one.params, many.params)
    jax.tree.map(np.testing.assert_array_equal, many.ema, many.params)


def test_signals_save_and_the_same_command_goes_on(whole, tmp_path, capsys):
    """Stopped twice in the middle, at no round step, it ends where the undisturbed run did."""
    stopped = 0
    for signum, count in [(signal.SIGTERM, 7), (signal.SIGINT, 15)]:
        ask = raises_at(count, lambda: os.kill(os.getpid(), signum))  # noqa: B023
        with pytest.raises(Interrupted, match="run the same command again") as error:
            run(tmp_path, stream=ask, log_every=50)
        assert error.value.code == 128 + signum
        assert str(error.value) in capsys.readouterr().err
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            assert stopped < (stopped := checkpoints.steps()[-1]) < 20
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same(run(tmp_path, log_every=50), whole.state)
    steps = [row["step"] for row in read_curves(tmp_path / "curves.csv")]
    assert steps[-2:] == [stopped, 20] and len(steps) == 3


def test_a_second_ctrl_c_does_not_wait():
    """Not even for a `watch` that hangs, where the first one has to."""

    def hang(ema, step):
        ctrl_c = partial(os.kill, os.getpid(), signal.SIGINT)
        ctrl_c()
        threading.Timer(0.2, ctrl_c).start()
        time.sleep(10)
        pytest.fail("the second Ctrl-C waited")

    with pytest.raises(KeyboardInterrupt):
        run(watch=hang, watch_every=1)


@pytest.mark.parametrize("steps_per_call, log_every, rows", [(1, 7, [7, 12]), (5, 5, [5, 10, 12])])
def test_what_is_not_finite_stops_and_leaves_the_state_before_it(
    whole, tmp_path, steps_per_call, log_every, rows
):
    with pytest.raises(FloatingPointError, match=r"step 13 is not finite: loss nan"):
        run(tmp_path, stream=poisoned(12), steps_per_call=steps_per_call, log_every=log_every)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [12]
        kept, position = checkpoints.restore(whole.state)
    assert position == {"count": 12} and kept.step == 12
    step, before = whole.watched[0]
    assert step == 12
    if steps_per_call == 1:
        jax.tree.map(np.testing.assert_array_equal, kept.ema, before)
    assert_close(kept.ema, before)  # a scan rounds otherwise
    assert [row["step"] for row in read_curves(tmp_path / "curves.csv")] == rows


def test_calls_are_cut_where_the_loop_looks():
    looks = loop.Intervals(log=7, save=10, watch=100)
    assert [*loop._sizes(0, 23, 4, looks)] == [4, 3, 3, 4, 4, 2, 1, 2]
    assert [*loop._sizes(9, 12, 4, looks)] == [1, 2]
    assert [*loop._sizes(5, 5, 4, looks)] == []


def test_an_update_that_is_not_finite_stops_too():
    explode = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u / 0, updates))
    with pytest.raises(FloatingPointError, match="step 1 is not finite"):
        run(optimizer=explode, steps=2)


def test_optimizers_that_ask_for_the_loss_get_it(tmp_path):
    """And the loss gets the frozen weights."""

    class Told(NamedTuple):
        value: jax.Array
        again: jax.Array
        grad: dict

    def update(updates, state, params, *, value, grad, value_fn):
        return updates, Told(value, value_fn(params), grad)

    def scaled(params, frozen, batch, key):
        value, metrics = loss(params, None, batch, key)
        return frozen * value, {**metrics, "scale": frozen}

    start = Told(jnp.float32(0), jnp.float32(0), parameters())
    tell = optax.GradientTransformationExtraArgs(lambda params: start, update)
    state = run(tmp_path, 1, loss=scaled, optimizer=tell, frozen=jnp.float32(2))
    (row,) = read_curves(tmp_path / "curves.csv")
    assert row["scale"] == 2
    assert_close([state.opt_state.value, state.opt_state.again], [row["loss"]] * 2)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.opt_state.grad)  # from zero


def test_an_error_in_the_stream_is_raised_by_the_loop():
    def broken(count):
        raise OSError("shard 5 is gone")

    with pytest.raises(OSError, match="shard 5 is gone"):
        run(stream=stream(read=broken))


def test_what_has_no_rows_is_no_batch():
    ragged = Stream(0, lambda i: ({"x": np.float32(1.0)}, i + 1))
    with pytest.raises(ValueError, match="'x'"):
        run(stream=ragged)
