"""Rows from elsewhere are refused by line and field, or shown; their text is but letters."""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest
from report_rows import job, traces

from optdiff.report import report
from optdiff.results import append, load

WRONG = [None, [], [None], {}, {"a": {"b": None}}, {"a": [1]}, "text", 1.5, True, 10**400]
FIELDS = ["key", "status", "config", "levels", "nfe_asked", "nfe", "seed", "samples", "metrics"]
FIELDS += ["floor", "time", "spread", "refused"]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


MARKUP = [
    *(
        "$",
        "$5 off, $10",
        r"$\frac{",
        r"\alpha",
        "a_b^c",
        "%",
        "&amp;",
        "&#x26;",
        "<",
        "<script>x</script>",
    ),
    *(
        "<!--",
        "]]>",
        "<?xml?>",
        "<img src=x onerror=y>",
        "*a*",
        "_a_",
        "`a`",
        "```",
        "[a](b)",
        "![a](b)",
    ),
    *(
        "|",
        "a|b",
        "\\|",
        "# a",
        "- a",
        "1. a",
        "> a",
        "---",
        "~~a~~",
        ":--",
        "{a}",
        "{{a}}",
        "{0}",
        "%s",
    ),
    *(
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+1",
        "-1",
        "@a",
        " =1",
        "\t=1",
        "'",
        '"',
        '""',
        "a,b",
        ";",
        "a;b",
    ),
]
LETTERS = [
    *(
        "七",
        "猫 кот",
        "ü",
        "e\u0301",
        "🚀",
        "👩‍👩‍👧",
        "שלום",
        "\u202eabc",
        "\u2066a",
        "\u200b",
        "\ufeffa",
        "\xa0",
    ),
    *("\u2028", "\u0085", "\ud800", "\udfff", "\ufffe", "\uffff", "\U0010ffff", "İ", "ß", "ſ", "K"),
]
CONTROLS = [f"a{chr(i)}b" for i in (0, 1, 7, 8, 9, 10, 11, 12, 13, 27, 31, 127, 155)]
WORDS = ["", " ", "  a  ", "n" * 400, "../../x", "/", "C:\\x", "nan", "null", "1", "1e400", "True"]
LABELS = [*MARKUP, *LETTERS, *CONTROLS, "\x1b[31m\x07red", *WORDS]


@pytest.mark.filterwarnings("ignore:Glyph")  # a box stands for what the font lacks
def test_what_users_wrote_is_letters_in_every_medium(tmp_path):
    """Every name of a sampler has its line and its row; what it is made of does nothing."""
    assert len(LABELS) >= 95
    for i, name in enumerate(LABELS):
        row = job(
            name, problem=LABELS[i // 20 * 20], metrics={"w2": 1.0, LABELS[i // 20 * 20 + 1]: 2.0}
        )
        append(tmp_path, row | {"refused": {name: name}}, traces(0, 8))
    report(tmp_path)
    for figure in ("figure.svg", "diagnostics.svg"):
        ElementTree.parse(tmp_path / figure)
    page, sheet = ((tmp_path / f"table.{end}").read_text() for end in ("md", "csv"))
    for tag in ("<script", "<!--", "<img", "<?xml"):
        assert tag not in page
    assert not CONTROL.search(page + sheet) and "n" * 200 not in page
    rows = list(csv.reader(io.StringIO(sheet)))
    assert {len(row) for row in rows} == {len(rows[0])}
    words = [field for row in rows for field in row[:3]]
    assert not any(field.lstrip()[:1] in ("=", "+", "-", "@") for field in words if field.strip())


def test_a_truncated_artifact_is_told_and_the_rest_shown(tmp_path):
    row = append(tmp_path, job(), traces(0, 8))
    path = tmp_path / "artifacts" / f"{row['key']}.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert "**Damaged**" in report(tmp_path) and (tmp_path / "figure.svg").exists()
