"""Rows from elsewhere are refused by line and field, or shown; their text is but letters."""

import json
from xml.etree import ElementTree

import pytest
from report_rows import job, traces

from optdiff.report import report
from optdiff.results import append, load

WRONG = [None, [], [None], {}, {"a": {"b": None}}, {"a": [1]}, "text", 1.5, True, 10**400]
FIELDS = ["key", "status", "config", "levels", "nfe_asked", "nfe", "seed", "samples", "metrics"]
FIELDS += ["floor", "time", "spread", "refused"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_damaged_field_is_named_or_shown(tmp_path, field):
    """Each value is read; the first refused and the first accepted are reported, too."""
    reported = set()
    for value in WRONG:
        good, bad = job("good"), job("bad") | {field: value}
        (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(bad)}\n")
        try:
            load(tmp_path)
            refused = False
        except ValueError as error:
            assert f"rows.jsonl:3: not a row ({field} " in str(error) and "\n" not in str(error)
            refused = True
        if refused not in reported:
            page = report(tmp_path)
            assert "good" in page and ("**Damaged**" in page) >= refused
            reported.add(refused)


@pytest.mark.parametrize("value", ["NaN", "Infinity", float("nan"), float("inf")])
def test_a_metric_that_is_no_number_has_failed(tmp_path, value):
    row = json.dumps(job("bad") | {"metrics": {"w2": value}})
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(job('good'))}\n{row}\n")
    assert [one["status"] for one in load(tmp_path)] == ["ok", "failed"]
    assert "FloatingPointError" in report(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["$5 off, $10", "\x1b[31m\x07red", "n" * 400, "<script>x</script>", "=cmd|' /C calc'!A0"],
)
def test_what_users_wrote_is_letters_in_every_medium(tmp_path, name):
    for sampler in (name, "ddim"):
        refused = {name: name}
        row = job(sampler, problem=name, metrics={"w2": 1.0, name: 2.0}) | {"refused": refused}
        append(tmp_path, row, traces(0, 8))
    report(tmp_path)
    for figure in ("figure.svg", "diagnostics.svg"):
        ElementTree.parse(tmp_path / figure)
    page, sheet = ((tmp_path / f"table.{end}").read_text() for end in ("md", "csv"))
    assert "<script" not in page and "\x1b" not in page + sheet and "n" * 200 not in page
    assert not any(field.startswith("=") for field in sheet.replace("\n", ",").split(","))


def test_a_truncated_artifact_is_told_and_the_rest_shown(tmp_path):
    row = append(tmp_path, job(), traces(0, 8))
    path = tmp_path / "artifacts" / f"{row['key']}.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert "**Damaged**" in report(tmp_path) and (tmp_path / "figure.svg").exists()
