"""A step appears once in a table, wherever the process that wrote it was killed."""

import shutil

import pytest

from optdiff.learning.curves import Curves, Table, mean_of, read
from optdiff.learning.interruption import ResumeError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "curves.csv"
    table = Table(path, 0)
    for step in (10, 20, 30):
        table.append(step, {"loss": 1 / step, "size": step})
    return path


def test_what_was_written_is_read(path):
    rows = read(path)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[2] == {"step": 30, "loss": pytest.approx(1 / 30, rel=1e-8), "size": 30}


@pytest.mark.parametrize("step, kept", [(0, []), (10, [10]), (25, [10, 20]), (30, [10, 20, 30])])
def test_rows_after_the_step_to_go_on_from_are_dropped(path, step, kept):
    table = Table(path, step)
    assert [row["step"] for row in read(path)] == kept
    table.append(40, {"loss": 0.0, "size": 1.0})
    assert [row["step"] for row in read(path)] == [*kept, 40]


def test_wherever_the_last_line_is_torn_only_whole_rows_stay(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        Table(path, 30).append(40, {"loss": 0.0, "size": 1.0})
        steps = [row["step"] for row in read(path)]
        left = max(0, whole[:length].count(b"\n") - 1)
        assert steps == [*[10, 20, 30][:left], 40]


def test_wherever_a_run_is_killed_its_curves_go_on(tmp_path):
    """The time too; a kill in the first row, or in the header, leaves none to go on from."""
    path, board = tmp_path / "curves.csv", tmp_path / "tensorboard"
    curves = Curves(tmp_path, 0)
    for step in (10, 20):
        curves.add(step, float(step), {"loss": 1 / step})
    curves.close()
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        shutil.rmtree(board)
        curves = Curves(tmp_path, 20)
        curves.add(40, 5.0, {"loss": 0.0})
        curves.close()
        left = [10, 20][: max(0, whole[:length].count(b"\n") - 1)]
        rows = [(row["step"], row["seconds"]) for row in read(path)]
        assert rows == [*zip(left, left, strict=True), (40, 5 + max(left, default=0))]


@pytest.mark.parametrize("text", ["", "step,lo", "step,loss\n"])
def test_a_file_without_a_whole_row_has_no_rows(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    assert read(path) == []


def test_other_columns_are_refused_beside_rows_that_stay(path):
    with pytest.raises(ResumeError, match=r"columns \['step', 'loss', 'size'\]"):
        Table(path, 10).append(40, {"loss": 0.0})
    Table(path, 9).append(10, {"loss": 0.0})
    assert read(path) == [{"step": 10, "loss": 0.0}]


def test_a_line_of_other_length_is_named(path):
    path.write_text(path.read_text() + "40,1\n")
    with pytest.raises(ValueError, match=r"curves.csv:5: 2 fields for 3 columns"):
        read(path)


def test_a_mean_is_over_steps():
    assert mean_of([{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 4.0}]) == {"a": 1.5, "b": 3.0}
