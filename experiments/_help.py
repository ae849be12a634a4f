"""What `--help` shows: a script's own words, and its yaml with the comments in it."""

import sys
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"


def asked() -> bool:
    """Whether the command line asks for help."""
    return bool({"--help", "-h"} & {*sys.argv[1:]})


def show(words: str, name: str) -> None:
    """Print a script's docstring, the yaml of its configuration, and what there is to choose."""
    print(words)
    print((CONF / f"{name}.yaml").read_text("utf-8").partition("\nhydra:")[0])
    print("\nChoices, whose parameters conf/GROUP/CHOICE.yaml explains (--hydra-help: of Hydra):")
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        choices = sorted(path.stem for path in group.glob("*.yaml"))
        print(f"{group.name}: {', '.join(choices)}")
