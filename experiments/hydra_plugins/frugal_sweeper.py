"""Hydra's basic sweeper, which validates every override once instead of every job.

Hydra composes each job twice, to validate the sweep and to launch the job, at 0.03 to 0.1 s each.
A job can only fail to compose by one of its overrides, and jobs share theirs. Hydra finds this file
by its folder's name.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class FrugalSweeper(BasicSweeper):
    """Validates the first job that has an override, and not the others that repeat it."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        seen: set[str] = set()
        telling = []
        for overrides in batch:
            if not seen.issuperset(overrides):
                telling.append(overrides)
                seen.update(overrides)
        super().validate_batch_is_legal(telling)
