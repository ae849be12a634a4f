"""A method is its configuration: nothing else makes rows repetitions of one another."""

import itertools

import pytest
from report_rows import job

from optdiff.report.cells import boards
from optdiff.results import append, load


def test_other_parameters_on_other_seeds_are_no_repetitions(tmp_path):
    for seed in range(6):
        config = {"sampler": {"_target_": "momentum", "beta": 0.2 if seed < 3 else -0.3}}
        append(tmp_path, job("momentum", 8, seed, value=1.0 + seed, config=config))
    (board,) = boards(load(tmp_path))
    assert board.methods == ["momentum beta=0.2", "momentum beta=-0.3"]
    assert [set(board.cells[m, 8].values["w2"]) for m in board.methods] == [{0, 1, 2}, {3, 4, 5}]


@pytest.mark.parametrize("entry", ["keep", "batch", "refresh", "study", "metrics", "exact"])
def test_what_makes_no_method_makes_no_second_row(tmp_path, entry):
    config = {"sampler": {"name": "adam"}}
    for seed in range(3):
        append(tmp_path, job("adam", 8, seed, 1.0, config=config | {entry: seed}))
    newer = job("adam", 8, 1, 7.0, config=config | {entry: "new"}, time="2026-01-03")
    older = job("adam", 8, 1, 9.0, config=config | {entry: "old"}, time="2025-01-02")
    append(tmp_path, newer)
    append(tmp_path, older)
    (board,) = boards(load(tmp_path))
    assert board.methods == ["adam"] and board.seeds == [0, 1, 2]
    assert board.cells["adam", 8].values["w2"] == {0: 1.0, 1: 7.0, 2: 1.0}
    assert board.cells["adam", 8].keys[1] == newer["key"]


def test_a_swept_parameter_names_methods_and_so_do_samples_and_grids(tmp_path):
    for rate, seed, nfe in itertools.product([0.1, 0.2], range(2), [4, 8]):
        config = {"batch": 8 + seed, "sampler": {"name": "adam", "learning_rate": rate}}
        append(tmp_path, job("adam", nfe, seed, value=rate, config=config))
    (board,) = boards(load(tmp_path))
    assert board.methods == ["adam learning_rate=0.1", "adam learning_rate=0.2"]
    for seed in range(2):
        append(tmp_path, job("ddim", 8, seed, grid="uniform"))
        append(tmp_path, job("ddim", 8, seed, grid="uniform", samples=64, config={"samples": 64}))
    (board,) = boards(load(tmp_path))
    assert board.methods[2:] == ["ddim samples=512, uniform", "ddim samples=64, uniform"]


def test_a_configuration_is_a_method_under_each_of_its_names(tmp_path):
    for sampler, seed in itertools.product(["ddim", "euler"], range(2)):
        append(tmp_path, job(sampler, 8, seed, config={"sampler": "euler's rule"}))
    (board,) = boards(load(tmp_path))
    assert board.methods == ["ddim", "euler"]
    assert board.cells["ddim", 8].values == board.cells["euler", 8].values


@pytest.mark.parametrize(
    "samplers, names",
    [
        (
            [{"optimizer": {"_target_": f"optax.{name}", "beta": 1}} for name in ("lion", "sgd")],
            ["x optimizer=lion", "x optimizer=sgd"],
        ),
        (
            [{"_target_": name, "beta": 1} for name in ("a.ddim", "b.ddim")],
            ["x sampler=a.ddim", "x sampler=b.ddim"],
        ),
        (  # the path as far as it is needed to tell one beta from the other
            [{"outer": {"beta": 1}, "inner": {"beta": beta}} for beta in (1, 2)],
            ["x inner.beta=1", "x inner.beta=2"],
        ),
        ([{"a": 1}, {"a": 1, "b": [1, 2]}], ["x b=unset", "x b=[1, 2]"]),
        (
            [{"a": a, "b": b, "c": a} for a, b in itertools.product((1, 2), (3, 4))],
            [f"x a={a} b={b}" for a, b in itertools.product((1, 2), (3, 4))],
        ),
    ],
)
def test_names_tell_methods_apart_in_few_words(tmp_path, samplers, names):
    for value, sampler in enumerate(samplers):
        append(tmp_path, job("x", value=1.0 + value, config={"sampler": sampler}))
    (board,) = boards(load(tmp_path))
    assert board.methods == names
