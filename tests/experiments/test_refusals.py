"""What cannot work is refused before anything compiles: in one line, and no row is left."""

import copy
import json
import math
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _jobs
from _build import _parameters, check_targets, constructed, folder_name
from _errors import ConfigError

from optdiff import results
from optdiff.results import leaves

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
GROUPS = ("sampler", "grid", "clock", "problem")
CHECKED_BY_THEIR_FILES = {("problem", "stable_diffusion"), ("problem", "text_to_image")}


def numbers():
    """Every number of every yaml: its group, configuration, and path there."""
    names = {(g, path.stem) for g in GROUPS for path in CONF.glob(f"{g}/*.yaml")}
    names = sorted((g, n) for g, n in names if (g, n) not in CHECKED_BY_THEIR_FILES)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        # All in one: composing is mostly what Hydra adds of its own.
        every = [f"+{group}@{group}_{name}={name}" for group, name in names]
        composed = hydra.compose(overrides=[*every, "+problem={}"])
    numbers = []
    for group, name in names:
        config = OmegaConf.to_container(composed[f"{group}_{name}"], resolve=True)
        for path, value in leaves(config):
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.append(pytest.param(group, config, path, id=f"{name}-{'.'.join(path)}"))
    return numbers


def refused(group, config, path, value):
    """Whether a value of an entry is refused, in one line that names it."""
    config = copy.deepcopy(config)
    *above, last = path
    entry = config
    for key in above:
        entry = entry[key]
    entry[last] = value
    try:
        check_targets({group: config}, "config")
        if group == "sampler":
            constructed(group, config)
    except ConfigError as error:
        assert "\n" not in str(error) and group in str(error) and last in str(error)
        return True
    return False


@pytest.mark.parametrize("group, config, path", numbers())
def test_every_number_of_every_yaml_is_looked_at(group, config, path):
    assert not refused(group, config, path, _at(config, path))
    assert refused(group, config, path, "abc")
    assert refused(group, config, path, math.nan)
    target = _at(config, (*path[:-1], "_target_"))
    if target.startswith("optdiff."):
        for value in outside(_parameters(target)[1].get(path[-1], "(-inf, inf)")):
            advice = f"{'.'.join(path)} takes {value}: say its range, with optdiff.types.within"
            assert refused(group, config, path, value), advice


def outside(allowed):
    """The first number beyond each end of a range."""
    for bracket, end in zip((allowed[0], allowed[-1]), allowed[1:-1].split(","), strict=True):
        end, away = float(end), -math.inf if bracket in "([" else math.inf
        if bracket in "()":
            yield end
        elif math.isfinite(end):
            yield math.nextafter(end, away)


def _at(config, path):
    for key in path:
        config = config[key]
    return config


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["sampler=ddmi"], "'ddim'"),
        (["-m", "sampler=ddim,hen"], "'heun'"),
        (["sampler=dpmpp_2M"], "'dpmpp_2m'"),
        (["nfee=3"], "'nfe'"),
        (["sampler=momentum", "sampler.bet=1"], "'beta'"),
        (["sampler=momentum", "+sampler.bet=1"], "'beta'"),
        (["-m", "sampler=momentum,ddim", "+sampler.bet=1"], "'beta'"),
        (["sampler=optimizer", "sampler.optimizer._target_=optax.lionn"], "'lion'"),
        (["experiment=few_stp"], "'few_step'"),
        (["refresh=stal"], "stale"),
        (["metrics=digitz"], "'digits'"),
        (
            ["--config-dir", ".", "experiment=few_step", "study=a b"],
            "evaluate.py -m --config-dir . experiment=few_step 'study=a b'",
        ),
        (
            ["-m", "sampler=momentum", "sampler.beta=0.1,5.5", "nfe=2"],
            "beta = 5.5 is not in (-1, 1)",
        ),
        (["-m", "nfe=2,2.5"], "nfe = 2.5 must be a whole number of at least 1"),
        (["samples=0", "keep=-1"], "samples = 0 must be a whole number of at least 1; keep"),
        (["exact.levels=1"], "exact.levels = 1"),
        (["problem._target_=types.SimpleNamespace", "metrics=trajectory"], "register_dataclass"),
        (["study=../evil"], "study = '../evil' is no name of a folder"),
        (["-m", "study=nan,fine"], "study = nan is no path"),
    ],
)
def test_what_cannot_work_is_refused_soon(evaluate, tmp_path, arguments, meant):
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert meant in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "results").exists() and not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("name", ["", " ", ".cache", "..", "a/b", "a\\b", "a\nb", None, 1.5, True])
def test_a_name_is_that_of_one_folder(name):
    with pytest.raises(ConfigError, match="study = "):
        folder_name("study", name)
    assert folder_name("study", 20241130) == "20241130"
    assert folder_name("study", "mine, too") == "mine, too"


def test_one_and_one_point_zero_are_one_job(evaluate, tmp_path):
    job = ("problem=gaussian", "samples=16", "sampler=ghvb", "study=mine")
    assert evaluate(*job, "nfe=2", "sampler.order=2").returncode == 0
    log = tmp_path / "results/mine/rows.jsonl"
    (row,) = map(json.loads, log.read_text().splitlines())
    # As it was when `2` and `2.0` were two jobs, with two keys.
    row["config"]["sampler"]["order"], row["sampler"] = 2.0, "ghvb(order=2.0)"
    row["key"] = "0123456789abcdef"
    log.write_text(json.dumps(row) + "\n")
    for same in ("2", "2.0"):
        assert evaluate(*job, "nfe=2.0", "seed=0.0", f"sampler.order={same}").returncode == 0
        assert len(log.read_text().splitlines()) == 1
    assert evaluate(*job, "nfe=2", "sampler.order=2", "refresh=all").returncode == 0
    assert {row["key"] for row in results.load(log.parent)} == {"0123456789abcdef"}


def test_in_half_precision_batch_is_part_of_a_job():
    """There a network rounds by how many it sees, so other batches are other samples."""
    jobs = [
        {"problem": {"dtype": dtype}, "samples": 64, "batch": batch}
        for dtype in ("float32", "bfloat16", "float16")
        for batch in (8, 64, 512)
    ]
    keys = [_jobs._key(job) for job in jobs]
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] != keys[4] == keys[5] and keys[6] != keys[7] == keys[8]  # all 64 at once


def test_committed_rows_keep_their_keys():
    for log in ROOT.glob("results/*/rows.jsonl"):
        known = _jobs.log(str(log.parent), "failed").names
        keys = {row["key"] for row in results.load(log.parent)}
        assert {job["key"] for job in known.values()} == keys
