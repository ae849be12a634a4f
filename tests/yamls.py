"""The yamls of `conf` as the scripts compose them."""

from functools import cache
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[1] / "conf"


@cache
def composed(group: str) -> dict[str, DictConfig]:
    """The configurations of a group by name, but for those that wait for a file to be named."""
    names = sorted(path.stem for path in CONF.glob(f"{group}/*.yaml"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        # All in one: composing is mostly what Hydra adds of its own.
        every = hydra.compose(overrides=[f"+{group}@{name}={name}" for name in names])
    return {name: every[name] for name in names if not OmegaConf.missing_keys(every[name])}


def sampler(name: str, **changes):
    """A sampler of `conf/sampler`, with some of it changed; in a name, `__` leads into an entry."""
    config = composed("sampler")[name].copy()
    for path, value in changes.items():
        OmegaConf.update(config, path.replace("__", "."), value, force_add=True)
    return hydra.utils.instantiate(config)
