"""Tables say what the rows say: numbers, gaps, failures, costs; files are whole or untouched."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_rows import cells_of, job, traces

from optdiff.report import figures, report, table
from optdiff.results import append, load


def test_numbers_are_those_of_the_rows(study, text):
    rows, seen = load(study), set()
    for line in csv.DictReader((study / "table.csv").open()):
        mine = [
            row["metrics"][line["metric"]]
            for row in rows
            if (row["sampler"], str(row["nfe_asked"])) == (line["method"], line["nfe_asked"])
            and row["status"] == "ok"
        ]
        assert int(line["seeds"]) == len(mine)
        seen.add((line["method"], line["nfe_asked"], line["metric"]))
        if not mine:  # the hole shows too
            assert (line["method"], line["nfe_asked"]) == ("adam", "4")
            assert line["grid"] == "karras"
            assert {line[name] for name in ("nfe", "passes", "mean", "low", "high", "mark")} == {""}
            continue
        assert float(line["mean"]) == pytest.approx(np.mean(mine), rel=1e-12)
        if len(mine) == 3:
            ends = float(line["low"]), float(line["high"])
            if line["metric"] == "w2":  # 4.3027: Student's 97.5% quantile with two degrees
                half = 4.3027 * np.std(mine, ddof=1) / np.sqrt(3)
                assert ends == pytest.approx((np.mean(mine) - half, np.mean(mine) + half), rel=1e-4)
            else:  # a share
                assert 0 <= ends[0] < min(mine) <= max(mine) < ends[1] <= 1
        else:
            assert (line["low"], line["high"], line["failed"]) == ("", "", "2")
        asked = int(line["nfe_asked"])
        assert float(line["nfe"]) == asked - (line["method"] == "heun")
        assert float(line["passes"]) == 2 * float(line["nfe"])
        assert line["floor"] == ("0.01" if line["metric"] == "w2" else "")
    assert len(seen) == 2 * 3 * 3


def test_table_shows_means_gaps_failures_and_real_costs(study, text):
    found = cells_of(text, "w2")
    rows = load(study)
    values = [r["metrics"]["w2"] for r in rows if r["sampler"] == "ddim" and r["nfe_asked"] == 4]
    half = 4.3027 * np.std(values, ddof=1) / np.sqrt(3)
    assert f"{np.mean(values):.3f} ±{half:.3f}" in found["ddim", "4"]
    assert found["adam", "4"] == "—"
    assert found["adam", "16"].endswith("✗2")
    assert found["heun", "8"].endswith("@7") and "@" not in found["ddim", "8"]
    assert found["*real vs real*", "4"] == "0.010"
    for column in ("4", "8", "16"):
        assert sum("**" in cell for (_, c), cell in found.items() if c == column) == 1
    assert "2 network passes an evaluation" in text
    assert "✗2 digits: “ValueError: a \\| b”: adam at 16 (seed 1, 2)" in text
    whole = (study / "table.md").read_text()
    assert whole.startswith(text) and "recall (higher is better)" in whole and "recall" not in text


def test_footer_counts_stale_and_dirty_rows(tmp_path):
    for seed in range(3):
        row = job(seed=seed, source="old" if seed else "new", dirty=seed == 2, commit="c" * 40)
        append(tmp_path, row)
    text = report(tmp_path, source="new")
    assert "**Stale**: 2 of 3 rows" in text and "`refresh=stale`" in text
    assert "**Dirty**: 1 of 3 rows" in text
    assert "commit ccccccccc" in text
    fresh = report(tmp_path, source="old")
    assert "**Stale**: 1 of 3" in fresh
    assert "Stale" not in table.notes(load(tmp_path)[:1], [], "new")


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    for sampler in ("a", "b"):
        append(tmp_path, job(sampler, value=1.0 + (sampler == "b")))
    text = report(tmp_path)
    assert cells_of(text, "w2")["a", "8"] == "**1.00**"
    assert "±" not in text and "≈" not in text and "One seed" in text
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(line["low"], line["high"]) for line in lines] == [("", "")] * 2


def test_remarks_stand_below_their_table(tmp_path):
    append(tmp_path, job(metrics={"trajectory_error": 1.0, "w2": 1.0}))
    report(tmp_path)
    first, second = (tmp_path / "table.md").read_text().split("## Other metrics")
    assert "stochastic samplers" in first and "stochastic samplers" not in second


def test_small_numbers_get_a_unit_and_large_ones_an_exponent(tmp_path):
    for sampler, value in {"a": 2e-6, "b": 3e-6, "c": 4e6}.items():
        append(tmp_path, job(sampler, value=value, floor={}))
    text = report(tmp_path)
    found = cells_of(text, "w2")
    assert "in units of 1e-6" in text
    assert (found["a", "8"], found["b", "8"], found["c", "8"]) == ("**2.00**", "3.00", "4.00e+12")


def test_a_study_where_all_failed_still_shows_where(tmp_path):
    append(tmp_path, job("adam", error="ValueError: no"))
    text = report(tmp_path)
    assert cells_of(text, "no metric")["adam", "8"] == "✗1" and "“ValueError: no”" in text


def test_report_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="has no rows; run a sweep"):
        report(tmp_path)
    append(tmp_path, job())
    with pytest.raises(ValueError, match="no row has the metric 'fid'; there are w2"):
        report(tmp_path, primary="fid")


def test_the_same_log_gives_the_same_bytes(study, text):
    names = ["table.md", "table.csv", "figure.svg", "samples.png", "diagnostics.svg"]
    first = {name: (study / name).read_bytes() for name in names}
    assert report(study) == text
    assert first == {name: (study / name).read_bytes() for name in names}
    assert b"<text" not in first["figure.svg"]  # drawn as paths: no font of the reader's matters


def test_a_report_that_fails_changes_no_file(tmp_path, monkeypatch):
    append(tmp_path, job(), traces(0, 8) | {"samples": np.zeros((2, 4, 4))})
    report(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"table.md", "table.csv", "figure.svg", "samples.png"} < set(before)
    append(tmp_path, job(seed=1))
    before["rows.jsonl"] = (tmp_path / "rows.jsonl").read_bytes()
    monkeypatch.setattr(figures, "diagnostics", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_without_artifacts_there_are_no_pictures(tmp_path):
    append(tmp_path, job())
    report(tmp_path)
    assert (tmp_path / "figure.svg").exists() and not (tmp_path / "samples.png").exists()


def test_report_imports_no_jax():
    program = "import sys, optdiff.report; print('jax' in sys.modules, 'hydra' in sys.modules)"
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True).split() == [
        "False",
        "False",
    ]


def test_what_was_not_measured_is_said_of_the_methods_that_lack_it(tmp_path):
    for name in ("ddim", "heun", "adam"):
        whys = {"fid": "wants 2048 samples"} | ({"ode": "has no path"} if name == "adam" else {})
        append(tmp_path, job(name, refused=whys))
    report(tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "Not measured: fid: wants 2048 samples." in text
    assert "Not measured: ode (adam): has no path." in text
