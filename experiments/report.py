"""Draw a study again from its rows and artifacts alone: python experiments/report.py study=mine"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from optdiff.report import report


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    study = Path("results") / config.study
    if not (study / "rows.jsonl").exists():
        known = [path.parent.name for path in sorted(Path("results").glob("*/rows.jsonl"))]
        raise SystemExit(f"{study} has no rows.jsonl; studies are: {', '.join(known) or 'none'}")
    print(report(study, primary=config.primary))


if __name__ == "__main__":
    main()
