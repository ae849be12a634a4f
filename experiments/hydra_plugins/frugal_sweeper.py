"""Hydra's basic sweeper, which validates every override once instead of every job.

Hydra composes each job twice, to validate the sweep and to launch the job, at 0.03 to 0.1 s each.
A job can only fail to compose by one of its overrides, and jobs share theirs; one number is as good
as another. What is composed is also checked for parameters that nothing takes. Hydra finds this
file by its folder's name.
"""

import re
from collections.abc import Sequence

from _build import check_targets
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf


class FrugalSweeper(BasicSweeper):
    """Validates the first job that has an override, and not the others that repeat it or give the
    same key another number."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        seen: set[str] = set()
        for overrides in batch:
            kinds = [re.sub(r"=[-+.\de]+$", "=number", override) for override in overrides]
            if not seen.issuperset(kinds):
                self._validate(overrides)
                seen.update(kinds)

    def _validate(self, overrides: Sequence[str]) -> None:
        loader = self.hydra_context.config_loader
        config = loader.load_sweep_config(self.config, list(overrides))
        check_targets(OmegaConf.to_container(OmegaConf.masked_copy(config, _own(config))), "config")


def _own(config) -> list[str]:
    return [key for key in config if key != "hydra"]
