"""The log keeps what it was given: through torn lines, crowds of writers and kill -9."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from optdiff import results
from optdiff.results import append, config_key, finished, load, load_artifact

ROOT = Path(__file__).parent.parent


def make_row(key="k0", **changes):
    row = {
        "key": key,
        "source": "aaaa",
        "status": "ok",
        "error": None,
        "problem": "digits",
        "sampler": "ddim",
        "grid": "karras",
        "config": {"nfe": 8, "seed": 0},
        "levels": [80.0, 1.0, 0.002],
        "nfe_asked": 8,
        "nfe": 8.0,
        "passes": 8.0,
        "batch_nfe": 8.0,
        "unfinished": 0,
        "seed": 0,
        "samples": 512,
        "metrics": {"sliced_w2": 0.25},
        "spread": {"sliced_w2": [0.01, -0.01]},
        "refused": {},
        "floor": {"sliced_w2": 0.01},
        "seconds_compile": 1.0,
        "seconds_run": 0.1,
        "seconds_metrics": 0.2,
        "versions": {"python": "3.11"},
        "device": "cpu",
        "commit": None,
        "dirty": None,
        "time": "2026-01-01T00:00:00+00:00",
    }
    return row | changes


def finished_keys(study, **options):
    return {key for key, *_ in finished(study, **options)}


def spawn(script, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


def test_round_trip(tmp_path):
    row = make_row(config={"sampler": {"b": (0.9, 0.99), "é": None}}, levels=np.float32([2, 0.5]))
    written = append(tmp_path, row, {"samples": np.ones((2, 3), np.float32)})
    assert written["status"] == "ok"
    expected = row | {"config": {"sampler": {"b": [0.9, 0.99], "é": None}}, "levels": [2.0, 0.5]}
    assert load(tmp_path) == [expected]
    assert load_artifact(tmp_path, "k0")["samples"].shape == (2, 3)
    assert load_artifact(tmp_path, "other") is None
    assert load(tmp_path / "nowhere") == []


def test_numbers_that_are_not_finite_survive_strict_json_and_fail_the_row(tmp_path):
    metrics = {"a": float("nan"), "b": np.float32("inf"), "c": -np.inf, "d": 1.5}
    written = append(tmp_path, make_row(metrics=metrics, floor={"a": np.nan}))
    assert written["status"] == "failed" and written["error"].startswith("FloatingPointError: a is")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=refuse)
    (row,) = load(tmp_path)
    assert np.isnan(row["metrics"]["a"]) and np.isnan(row["floor"]["a"])
    assert (row["metrics"]["b"], row["metrics"]["c"]) == (np.inf, -np.inf)
    assert row["metrics"]["d"] == 1.5
    assert finished(tmp_path) == set()


def test_append_names_what_is_wrong(tmp_path):
    row = make_row()
    del row["seed"]
    with pytest.raises(ValueError, match=r"missing fields \['seed'\], unknown \['sede'\]"):
        append(tmp_path, row | {"sede": 1})
    with pytest.raises(TypeError, match=r"row\.config\.model\[1\] is a object"):
        append(tmp_path, make_row(config={"model": [1, object()]}))
    with pytest.raises(TypeError, match="'samples' holds objects"):
        append(tmp_path, make_row(), {"samples": np.array([None])})
    assert load(tmp_path) == []


def test_bfloat16_artifacts_come_back_as_numbers(tmp_path):
    import jax.numpy as jnp

    append(tmp_path, make_row(), {"samples": jnp.asarray([1.5, -2.0], jnp.bfloat16)})
    stored = load_artifact(tmp_path, "k0")["samples"]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, [1.5, -2.0])


def test_the_newest_row_of_a_key_wins_in_its_first_place(tmp_path):
    append(tmp_path, make_row("a", status="failed", error="ValueError: no"))
    append(tmp_path, make_row("b", source="old"))
    assert finished_keys(tmp_path) == {"b"}
    append(tmp_path, make_row("a", source="new"))
    assert [row["key"] for row in load(tmp_path)] == ["a", "b"]
    assert finished_keys(tmp_path) == {"a", "b"}
    assert finished_keys(tmp_path, source="new") == {"a"}  # refresh=stale reruns b
    append(tmp_path, make_row("a", status="failed", error="ValueError: again"))
    assert finished_keys(tmp_path) == {"b"}
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 4


def test_a_configuration_of_two_names_has_a_row_under_each(tmp_path):
    for sampler in ("ddim", "euler"):
        append(tmp_path, make_row("a", sampler=sampler))
    append(tmp_path, make_row("a", sampler="ddim", status="failed", error="ValueError: no"))
    assert [row["sampler"] for row in load(tmp_path)] == ["ddim", "euler"]
    assert finished(tmp_path) == {("a", "digits", "euler", "karras")}


def test_keys_depend_on_content_alone():
    config = {"nfe": 8, "sampler": {"_target_": "a.b", "betas": [0.9, 0.99]}, "cap": float("inf")}
    shuffled = dict(reversed(config.items()))
    key = config_key(config)
    assert key == config_key(shuffled) == config_key(json.loads(json.dumps(config)))
    assert len(key) == 16 and int(key, 16) >= 0
    keys = {config_key(config | {"nfe": nfe}) for nfe in range(100)}
    assert len(keys) == 100
    typed = {"nfe": 8.0, "sampler": {"_target_": "a.b", "betas": [0.9, 0.99]}, "cap": float("inf")}
    assert config_key(typed) == key != config_key(typed | {"nfe": 8.5})
    program = f"from optdiff.results import config_key; print(config_key({config!r}))"
    program = program.replace("inf}", "float('inf')}")
    child = spawn(program, stdout=subprocess.PIPE, text=True)
    assert child.communicate()[0].strip() == key  # the same in another process


def test_a_loaded_config_still_has_its_key(tmp_path):
    config = {"cap": float("inf"), "betas": (0.9, 0.99), "nfe": 8}
    append(tmp_path, make_row(config_key(config), config=config))
    (row,) = load(tmp_path)
    assert config_key(row["config"]) == row["key"]


def test_a_log_torn_at_any_byte_loads_and_takes_appends(tmp_path):
    append(tmp_path, make_row("a"))
    append(tmp_path, make_row("b", metrics={"m": 2.0}))
    log = tmp_path / "rows.jsonl"
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole) + 1):
        log.write_bytes(whole[:size])
        complete = size >= len(whole) - 1  # at most the newline is gone
        before = ["a", "b"] if complete else ["a"]
        assert [row["key"] for row in load(tmp_path)] == before, size
        append(tmp_path, make_row("c"))
        assert [row["key"] for row in load(tmp_path)] == [*before, "c"], size
        torn = tmp_path / "rows.torn"
        kept = torn.read_bytes() if torn.exists() else b""
        # Nothing is thrown away: what is no row is kept beside the log.
        assert kept == (b"" if complete or size == first else whole[first:size] + b"\n")
        torn.unlink(missing_ok=True)


def test_a_log_torn_in_its_only_row_is_empty_and_takes_appends(tmp_path):
    append(tmp_path, make_row("a"))
    log = tmp_path / "rows.jsonl"
    log.write_bytes(log.read_bytes()[:40])
    assert load(tmp_path) == [] and finished(tmp_path) == set()
    append(tmp_path, make_row("b"))
    assert [row["key"] for row in load(tmp_path)] == ["b"]


@pytest.mark.parametrize("line", [b"{}", b"[1]", b'{"key": "x"', b"<<<<<<< HEAD", b"\xff\0"])
def test_corruption_elsewhere_names_file_and_line(tmp_path, line):
    for key in "ab":
        append(tmp_path, make_row(key))
    log = tmp_path / "rows.jsonl"
    first, second, _ = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a row"):
        load(tmp_path)


def test_derived_files_are_whole_or_absent(tmp_path, monkeypatch):
    results.write(tmp_path, {"table.md": b"old"})

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, {"table.md": b"new and longer"})
    assert (tmp_path / "table.md").read_bytes() == b"old"


def test_a_disk_that_is_full_at_any_byte_is_reported_and_loses_no_row(tmp_path):
    """The kernel cuts files off at so many bytes, artifact and log alike: of a line it writes what
    fits."""
    append(tmp_path, make_row("a"))
    log = tmp_path / "rows.jsonl"
    before, limits, torn = log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE), 0
    for size in np.linspace(0, 2 * len(before), 96, dtype=int).tolist():
        log.write_bytes(before)
        said = ""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            append(tmp_path, make_row("b"), {"samples": np.full(9, size)})
        except OSError as error:
            said = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (said == "") == (size == 2 * len(before))
        assert not said or "is the disk full?" in said or "File too large" in said
        torn += len(before) < log.stat().st_size < 2 * len(before)
        kept = ["a"] if said else ["a", "b"]
        assert [row["key"] for row in load(tmp_path)] == kept, size
        append(tmp_path, make_row("c"))
        assert [row["key"] for row in load(tmp_path)] == [*kept, "c"], size
    assert torn >= 43
    assert load_artifact(tmp_path, "b")["samples"].tolist() == [2 * len(before)] * 9


CROWD = """
import json, sys
import numpy as np
from optdiff.results import append
study, row, name = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
for i in range(200):
    row |= {"key": f"{name}{i}", "levels": [float(i)] * 50}
    append(study, row, {"samples": np.full(9, i)})
"""


def test_two_processes_append_without_losing_or_tearing_a_row(tmp_path):
    writers = [spawn(CROWD, tmp_path, json.dumps(make_row()), name) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    rows = load(tmp_path)
    assert {row["key"] for row in rows} == {f"{name}{i}" for name in "ab" for i in range(200)}
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 400
    assert not (tmp_path / "rows.torn").exists()
    for row in rows:
        assert load_artifact(tmp_path, row["key"])["samples"].tolist() == [row["levels"][0]] * 9


CLAIM = """
import sys, time
from optdiff.results import claim
with claim(sys.argv[1], ("k", "digits", "ddim", "karras")) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_claim_excludes_others_and_ends_with_its_process(tmp_path):
    other = spawn(CLAIM, tmp_path, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    with results.claim(tmp_path, ("k", "digits", "ddim", "karras")) as mine:
        assert not mine
    with results.claim(tmp_path, ("k", "digits", "euler", "karras")) as mine:
        assert mine
    other.kill()
    with results.claim(tmp_path, ("k", "digits", "ddim", "karras"), wait=True) as mine:
        assert mine
    other.communicate()


def test_rows_of_others_are_seen_as_they_come(tmp_path):
    assert results.appended(tmp_path, 0) == ([], 0)
    append(tmp_path, make_row("a"))
    (row,), seen = results.appended(tmp_path, 0)
    assert row["key"] == "a" and results.appended(tmp_path, seen) == ([], seen)
    log = tmp_path / "rows.jsonl"
    log.write_bytes(log.read_bytes() + b'{"key": "torn')
    assert results.appended(tmp_path, seen) == ([], seen)
    append(tmp_path, make_row("b"))
    assert [row["key"] for row in results.appended(tmp_path, seen)[0]] == ["b"]


REMEMBER = """
import sys, time
import numpy as np
from optdiff.results import remember
def compute():
    time.sleep(0.2)
    print("computed")
    return np.arange(5.0)
assert remember(sys.argv[1], {"seed": 0}, compute).tolist() == [0, 1, 2, 3, 4]
"""


def test_what_is_remembered_is_computed_once(tmp_path):
    crowd = [spawn(REMEMBER, tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in crowd]
    assert sorted(said) == ["", "", "computed\n"]
    assert [process.returncode for process in crowd] == [0, 0, 0]
    other = results.remember(tmp_path, {"seed": 1}, lambda: np.ones((2, 2), np.float32))
    assert other.dtype == np.float32 and other.shape == (2, 2)
    with pytest.raises(ZeroDivisionError):
        results.remember(tmp_path, {"seed": 2}, lambda: 1 / 0)
    assert results.remember(tmp_path, {"seed": 2}, lambda: np.zeros(1)) == 0  # not a failure


def test_a_flipped_bit_is_told_and_never_used(tmp_path):
    """What comes back is what was written, or nothing, wherever the bit is."""
    append(tmp_path, make_row("k"), {"samples": np.arange(6.0), "sigma": np.arange(3)})
    results.remember(tmp_path, {"seed": 1}, lambda: np.arange(6.0))
    artifact, (kept,) = tmp_path / "artifacts" / "k.npz", tmp_path.glob("*/array.npz")
    whole, refused = artifact.read_bytes(), 0
    for place in range(0, len(whole), 3):
        artifact.write_bytes(flipped(whole, place))
        try:
            back = load_artifact(tmp_path, "k")
        except ValueError as error:
            assert "k.npz cannot be read" in str(error)
            refused += 1
        else:
            assert back["samples"].tolist() == [0, 1, 2, 3, 4, 5] and back["sigma"].size == 3
    assert refused > 50
    kept.write_bytes(flipped(kept.read_bytes(), 60))
    with pytest.warns(UserWarning, match="array.npz cannot be read .*; computed again"):
        again = results.remember(tmp_path, {"seed": 1}, lambda: np.arange(6.0))
    assert again.tolist() == [0, 1, 2, 3, 4, 5]


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def test_results_is_light(tmp_path):
    program = "import sys, optdiff.results; print(*sys.modules)"
    loaded = spawn(program, stdout=subprocess.PIPE, text=True).communicate()[0].split()
    assert not {"jax", "numpy", "matplotlib", "optax", "hydra"} & set(loaded)
    append(tmp_path, make_row())
    seconds = []
    for i in range(20):
        start = time.perf_counter()
        append(tmp_path, make_row(f"k{i}"), {"samples": np.random.rand(8, 28, 28)})
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02


# A sweep: it announces each job after its row is on disk. Its disk is slow, and a write reaches it
# in two pieces, so that kills land inside writes and between an artifact and its row.
SWEEP = """
import json, os, sys, time
import numpy as np
from optdiff.results import append, finished

def in_pieces(descriptor, data, write=os.write):
    half = write(descriptor, data[: len(data) // 2])
    time.sleep(0.005)
    return half + write(descriptor, data[half:])

def slowly(source, target, replace=os.replace):
    time.sleep(0.001)
    replace(source, target)
    time.sleep(0.001)

os.write, os.replace = in_pieces, slowly
study, row, jobs = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
done = {key for key, *_ in finished(study)}
print("ready", flush=True)
for i in range(jobs):
    if (key := f"{i:04}") not in done:
        append(study, row | {"key": key, "levels": [float(i)] * 9}, {"samples": np.full(99, i)})
        print(key, flush=True)
"""


@pytest.mark.slow
def test_kill_minus_nine(tmp_path):
    jobs, kills, promised, chance = 300, 40, set(), random.Random(0)
    for run in range(kills + 1):
        sweep = spawn(
            SWEEP, tmp_path, json.dumps(make_row()), jobs, stdout=subprocess.PIPE, text=True
        )
        assert sweep.stdout.readline() == "ready\n"
        if run < kills:
            time.sleep(chance.uniform(0, 0.05))
            assert sweep.poll() is None, "killed after its end: give it more jobs"
            sweep.send_signal(signal.SIGKILL)
        promised |= set(sweep.communicate()[0].split())
        rows = {row["key"]: row for row in load(tmp_path)}
        assert promised <= set(rows)  # no row that was reported is lost
        for key, row in rows.items():
            assert row["levels"] == [float(key)] * 9
            assert (load_artifact(tmp_path, key)["samples"] == int(key)).all()
    assert len(rows) == jobs
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines()
    assert len(lines) == jobs  # none doubled
    assert (tmp_path / "rows.torn").exists(), "no kill fell inside a write: kill more"
    names = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert names - {".partial"} == {f"{key}.npz" for key in rows}
