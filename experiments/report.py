"""Draw a study again from its rows and artifacts alone: python experiments/report.py study=mine"""

import sys
from pathlib import Path

import hydra
from _build import folder_name
from _errors import ConfigError
from _sweep import run
from omegaconf import DictConfig

from optdiff.report import report


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    study = Path("results") / folder_name("study", config.study)
    if not (study / "rows.jsonl").exists():
        known = [path.parent.name for path in sorted(Path("results").glob("*/rows.jsonl"))]
        raise ConfigError(f"{study} has no rows.jsonl; studies are: {', '.join(known) or 'none'}")
    try:
        print(report(study, primary=config.primary))
    except ValueError as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    sys.exit(run(main))
