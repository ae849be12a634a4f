"""Hydra's basic sweeper, which looks at every job before the first runs, and leaves out those done.

Hydra composes each job twice, to validate the sweep and to launch the job, at 0.03 to 0.1 s each.
Here the choices of groups are composed once, and the other overrides of each job applied to that.
Hydra finds this file by its folder's name.
"""

import copy
from collections.abc import Sequence
from functools import cache
from itertools import chain

import _jobs
import _progress
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf


class FrugalSweeper(BasicSweeper):
    """Refuses a sweep if one of its jobs cannot work, and launches those that are to be done."""

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        loader = self.hydra_context.config_loader
        compose = _Composer(loader, self.config)
        # Workers build in processes of their own; here it would only take the accelerator's memory.
        alone = self.config.hydra.runtime.choices["hydra/launcher"] == "basic"
        jobs: dict[str, list[Sequence[str]]] = {}
        for overrides in super().get_job_batch():
            config, choices = compose(overrides)
            job = _jobs.job(config, choices, overrides, loader.get_group_options)
            if alone:
                _jobs.construct(job)
            if _jobs.ask(job):
                jobs.setdefault(_jobs.shared(job.config), []).append(overrides)
        # One after another, those that share their noise: no more of it need be kept.
        ordered = list(chain.from_iterable(jobs.values()))
        _progress.watch(len(ordered))
        return ordered

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Was done while they were chosen."""


class _Composer:
    """The configuration of a job and its choices of groups, from its overrides."""

    def __init__(self, loader, master: DictConfig):
        self.loader, self.master = loader, master
        parser = OverridesParser.create(loader)
        self.parse = cache(lambda override: parser.parse_overrides([override])[0])
        self.of_groups = cache(self._of_groups)

    def __call__(self, overrides: Sequence[str]) -> tuple[dict, dict[str, str]]:
        parsed = [self.parse(override) for override in overrides]
        groups = [o for o in parsed if self._is_group(o)]
        config, choices = self.of_groups(tuple(o.input_line for o in groups))
        values = [o for o in parsed if not self._is_group(o)]
        # Jobs of a sweep set the same entries, so one copy serves all that only set.
        if any(o.type is not OverrideType.CHANGE or isinstance(o.value(), dict) for o in values):
            config = copy.deepcopy(config)
        self.loader._apply_overrides_to_config(values, config)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True), choices

    def _of_groups(self, overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        whole = self.loader.load_sweep_config(self.master, list(overrides))
        own = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
        return own, OmegaConf.to_container(whole.hydra.runtime.choices)

    def _is_group(self, override: Override) -> bool:
        """As Hydra tells them apart."""
        exists = self.loader.repository.group_exists(override.key_or_group)
        return exists and not isinstance(override.value(), dict)
