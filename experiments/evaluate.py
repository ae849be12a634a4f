"""Evaluate samplers: one job is one (problem, sampler, grid, NFE, seed) and appends one row.

python experiments/evaluate.py problem=mixture sampler=ddim nfe=16 seed=0
python experiments/evaluate.py -m sampler=ddim,adam nfe=4,8,16 seed=0,1,2 study=mine
python experiments/evaluate.py -m experiment=few_step
"""

import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import _help
import _jobs
import hydra
from _build import constructed
from _device import device
from _errors import ConfigError, WriteError
from _measure import built_problem, measure
from _sweep import RESUMES, end_with_parent, run, single
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from optdiff import provenance, results
from optdiff.allocator import give_back_after_compiling


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(config: DictConfig) -> str:
    end_with_parent()
    about, overrides = HydraConfig.get(), list(HydraConfig.get().overrides.task)
    if single():
        _refuse_lone_sweep(about.sweeper.params or {}, overrides)
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    options = GlobalHydra.instance().config_loader().get_group_options
    return run_job(_jobs.job(plain, about.runtime.choices, overrides, options))


def conclude(sweep: bool, whole: bool) -> int:
    """Print the tables of a sweep; the exit code, 0 if every job asked for has a row that is ok and
    as new as `refresh` wants it. What nothing cut short waits for what others are at."""
    bad = False
    for (study, refresh), jobs in _jobs.asked.items():
        folder, log = _jobs.RESULTS / study, _jobs.log(study, refresh)
        for job in jobs if whole else ():
            if not log.has(job):
                with suppress(OSError), results.claim(folder, job, wait=True):
                    pass  # another process, if one was at it, has ended it
        bad |= not all(map(log.has, jobs))
        try:
            bad |= not jobs <= results.finished(folder)
            if sweep and (folder / "rows.jsonl").exists():
                print_report(folder)
        except ValueError as error:  # rows or artifacts that others have left
            print(error, file=sys.stderr)
            bad = True
    return int(bad)


def print_report(folder: Path) -> None:
    """Draw a study, and print its table even where nothing can be written."""
    from optdiff.report import report

    def write(folder: Path, files: Mapping[str, bytes]) -> None:
        try:
            results.write(folder, files)
        except OSError as error:
            print(f"{error}: {', '.join(files)} are as they were", file=sys.stderr)

    print(report(folder, write=write))


def _refuse_lone_sweep(params: Mapping[str, Any], overrides: list[str]) -> None:
    """A sweep that was asked for without `-m` would be one job, of the defaults."""
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if left := [name for name in params if name not in typed]:
        command = shlex.join(["python", sys.argv[0], "-m", *sys.argv[1:]])
        raise ConfigError(f"this sweeps over {', '.join(left)}, which takes -m: {command}")


def run_job(job: _jobs.Job) -> str:
    """Do one job, unless it is done already, or another process is at it, for which a single job
    waits."""
    if not _jobs.ask(job):
        return skip(job)
    _jobs.construct(job)  # what cannot work is refused before anything is written
    built_problem(job.config["problem"])
    constructed("metrics", job.config["metrics"])
    try:
        folder = _jobs.RESULTS / job.config["study"]
        with results.claim(folder, job.identity, wait=single()) as mine:
            return row_of(job)["status"] if mine and _jobs.ask(job) else skip(job)
    except OSError as error:
        raise WriteError(f"results/{job.config['study']}: {error}") from error


def skip(job: _jobs.Job) -> str:
    """Leave a job as it is; a single one shows the row that there is."""
    if single():
        rows = results.load(_jobs.RESULTS / job.config["study"])
        row = next(row for row in rows if results.identity(row) == job.identity)
        print(f"{summary(row)}\n  done before; refresh=all does it again")
    return "skipped"


def row_of(job: _jobs.Job) -> results.Row:
    """The row that a job ends with, whatever becomes of it."""
    config = job.config
    give_back_after_compiling()
    row = dict.fromkeys(results.Row.__annotations__) | {
        "key": job.key,
        "config": config,
        "status": "ok",
        "nfe_asked": config["nfe"],
        "seed": config["seed"],
        "samples": config["samples"],
        **job.names,
        **{"levels": [], "metrics": {}, "spread": {}, "refused": {}, "floor": {}},
    }
    artifact = None
    try:
        fields, artifact = measure(config)
        row |= fields
    except Exception as error:  # of any kind: the row says so, and its siblings go on
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    row |= provenance.provenance(device())
    row = results.append(_jobs.RESULTS / config["study"], row, artifact)
    if single():
        print(summary(row))
    return row


def summary(row: results.Row) -> str:
    """A row for the eye: one line for each metric, with its floor."""
    head = f"{row['sampler']} on {row['problem']}, {row['grid']} levels, seed {row['seed']}"
    if row["status"] == "failed":
        return f"{head}: {row['error']}"
    lines = [f"{head}: {row['nfe']:g} evaluations, {row['passes']:g} network passes a sample"]
    if row["batch_nfe"] is not None and row["batch_nfe"] > row["nfe"]:
        lines.append(f"  {row['batch_nfe']:g} evaluations of the batch, in which samples waited")
    if row["unfinished"]:
        lines.append(
            f"  UNFINISHED: {row['unfinished']} of {row['samples']} samples ran out of evaluations "
            "before the last level; give a larger nfe"
        )
    for name, value in row["metrics"].items():
        floor = f"   (real against real {row['floor'][name]:.4g})" if name in row["floor"] else ""
        lines.append(f"  {name:20} {value:10.4g}{floor}")
    lines += [f"  {name}: {why}" for name, why in row["refused"].items()]
    lines.append(
        f"  {row['seconds_run']:.2f} s sampling, {row['seconds_compile']:.2f} s compiling, "
        f"{row['seconds_metrics']:.2f} s measuring"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    asked = _help.asked()
    sys.exit(run(lambda: _help.show(__doc__, "config")) if asked else run(main, conclude, RESUMES))
