"""What stops a run is heard whenever it comes, and no two runs share a folder."""

import os
import signal
from functools import partial

import pytest
from small_run import run, stream

from optdiff.learning import checkpoints
from optdiff.learning.curves import read as read_curves
from optdiff.learning.interruption import Interrupted, ResumeError, Wish


@pytest.mark.parametrize("during", ["watch", "save"])
def test_a_signal_during_the_last_save_or_watch_is_heard(during, tmp_path, monkeypatch):
    """All is learned and saved by then, and yet whatever comes after training must not begin."""
    ask, digests = partial(os.kill, os.getpid(), signal.SIGINT), checkpoints._digests
    heed = lambda word, result: (ask() if word == during else None, result)[1]  # noqa: E731
    monkeypatch.setattr(checkpoints, "_digests", lambda path: heed("save", digests(path)))
    watch = lambda ema, step: heed("watch", {})  # noqa: E731
    with pytest.raises(Interrupted, match=r"after step 2, saved in .*same command"):
        run(tmp_path, 2, watch=watch, watch_every=2)
    assert checkpoints.Checkpoints(tmp_path / "checkpoints").steps() == [2]


@pytest.mark.parametrize("signum", Wish.SIGNALS)
def test_a_signal_that_came_too_late_is_passed_on(signum):
    """To whoever handled it before: nobody, where a shell began the tests in the background."""
    heard = []
    before = signal.signal(signum, lambda number, frame: heard.append(number))
    try:
        with Wish():
            signal.raise_signal(signum)
            assert not heard
        assert heard == [signum]
    finally:
        signal.signal(signum, before)


def test_a_second_run_in_a_folder_is_refused_and_spoils_nothing(tmp_path):
    """While the first runs, that is: afterwards the folder can be gone on with."""

    def second():
        with pytest.raises(ResumeError, match=rf"{tmp_path} is in use by process {os.getpid()}"):
            run(tmp_path, 20)

    reads = stream(read=lambda count: second() if count == 2 else None)
    run(tmp_path, 4, stream=reads, log_every=1)
    run(tmp_path, 6, log_every=1)
    assert [row["step"] for row in read_curves(tmp_path / "curves.csv")] == [*range(1, 7)]
