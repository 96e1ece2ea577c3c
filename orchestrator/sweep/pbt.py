"""The searcher `pbt`: population based training (Jaderberg et al., arXiv 1711.09846, 2017).

Every member of every generation is a trial of its own; who becomes of whom is decided in `sweep.population`, and
carried out by `sweep.generations`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.sweep.population import Child, Standing, choose_parent, explore, share_of
from orchestrator.sweep.search import Random, SearchTask

MOST_ATTEMPTS = 20
"""Changed values in a row that may be infeasible; then a member begins with its parent's own."""


@dataclass(frozen=True)
class _PbtConfig:
    """`population` trials a generation, each of `interval` evaluations. After it the worst `quantile` (and whoever has
    no result) begins from a checkpoint of the best `quantile`, its values multiplied or divided by `perturb`, or drawn
    anew with probability `resample`."""

    population: int
    interval: int = 1
    quantile: float = 0.25
    perturb: float = 1.2
    resample: float = 0.25

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"population must be at least 2, not {self.population}")
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 evaluation, not {self.interval}")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile must be above 0 and at most 0.5, not {self.quantile}")
        if self.perturb <= 1:
            raise ValueError(f"perturb must be above 1, not {self.perturb}: values are multiplied or divided by it")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"resample is a probability, not {self.resample}")


class Pbt(Random):
    """Population based training: trials that fall behind go on from a better one's checkpoint, with other values."""

    Config = _PbtConfig  # type: ignore[assignment]

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> Pbt:
        """Return the searcher."""
        return cls(config, task)

    def __init__(self, config: _PbtConfig, task: SearchTask) -> None:
        super().__init__(task)
        self._config = config
        self.population, self.interval = config.population, config.interval

    def breed(self, generation: int, member: int, attempt: int, former: Sequence[Standing]) -> Child | None:
        """Return a member of a generation (see `Breeder`)."""
        seed = f"{self._task.seed}/pbt/{generation}/{member}"
        count = share_of(self.population, self._config.quantile)
        parent = choose_parent(former, member, count, random.Random(seed))
        if parent is None:
            return None
        values = next(each.point for each in former if each.member == parent)
        if parent == member or attempt >= MOST_ATTEMPTS:
            return Child(parent, values, is_changed=False)
        numbers = random.Random(f"{seed}/{attempt}")
        perturb, resample = self._config.perturb, self._config.resample
        found = explore(self._task.space, values, numbers, perturb=perturb, resample=resample)
        return Child(parent, found, is_changed=found != values)
