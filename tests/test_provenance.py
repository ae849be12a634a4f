"""A row tells which source, commit and versions made it."""

import os
import random
import subprocess

from optdiff import provenance


def test_source_digest_sees_names_and_contents(tmp_path):
    def digest(**files):
        package = tmp_path / str(random.random())
        (package / "inner").mkdir(parents=True)
        for name, text in files.items():
            (package / "inner" / f"{name}.py").write_text(text)
        (package / "notes.txt").write_text(str(random.random()))
        return provenance.source_digest(package)

    assert digest(a="x", b="y") == digest(b="y", a="x")
    others = [
        digest(a="x", b="y"),
        digest(a="xy", b=""),
        digest(a="y", b="x"),
        digest(c="x", b="y"),
    ]
    assert len(set(others)) == 4
    drawn = tmp_path / "drawn"
    (drawn / "report").mkdir(parents=True)
    empty = provenance.source_digest(drawn)
    (drawn / "report/figures.py").write_text("colour = 1")
    provenance.source_digest.cache_clear()
    assert provenance.source_digest(drawn) == empty  # no row depends on how it is drawn
    (drawn / "pretrained/digits").mkdir(parents=True)
    (drawn / "pretrained/digits/model.safetensors").write_text("weights")
    provenance.source_digest.cache_clear()
    assert provenance.source_digest(drawn) != empty  # a network learnt anew is another model
    assert len(provenance.source_digest()) == 16


def test_a_stamp_sees_what_changed_at_a_path(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet/weights"
    stamps = [provenance.stamp(tmp_path)]
    for text in ("a", "bc"):
        weights.write_text(text)
        stamps.append(provenance.stamp(tmp_path))
    assert provenance.stamp(tmp_path) == stamps[-1]
    os.utime(weights, ns=(0, 0))
    weights.rename(tmp_path / "unet/others")
    stamps += [provenance.stamp(tmp_path), provenance.stamp(tmp_path / "unet/others")]
    assert len(set(stamps)) == 5


def test_provenance_knows_commit_and_dirt_of_source_and_configs(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    def checkout():
        provenance.checkout.cache_clear()
        return provenance.checkout(package)

    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1")
    git("init", "-q", ".")
    assert checkout() == (None, None)  # untracked: a checkout of something else
    git("add", "package")
    git("commit", "-q", "-m", "First")
    commit, dirty = checkout()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "results" / "study").mkdir(parents=True)
    (tmp_path / "results" / "study" / "rows.jsonl").write_text("{}")
    assert checkout() == (commit, False)
    (tmp_path / "multirun.yaml").write_text("a: 1")
    (tmp_path / "my_configs").mkdir()
    (tmp_path / "my_configs/a.yaml").write_text("a: 1")
    assert checkout() == (commit, False)
    for file in ("conf/new/a.yaml", "experiments/a.py", "package/b.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a: 1")
        assert checkout() == (commit, True), file
        (tmp_path / file).unlink()
    (tmp_path / "package/a.py").write_text("2")
    assert checkout() == (commit, True)
    provenance.checkout.cache_clear()
    fields = provenance.provenance("cpu")
    assert set(fields) == {"source", "versions", "device", "commit", "dirty", "time"}
    assert fields["device"] == "cpu" and {"python", "numpy"} <= set(fields["versions"])
    assert fields["time"].endswith("+00:00")
