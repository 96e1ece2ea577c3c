"""The Sobol searcher: points that cover the space more evenly than random ones (scrambled, by scipy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.sweep.point import Point
from orchestrator.sweep.search import Outcome, SearchTask


class Sobol:
    """A scrambled Sobol sequence: even cover of the space; best with a power of two of trials."""

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> Sobol:
        """Return the searcher."""
        return cls(task)

    def __init__(self, task: SearchTask) -> None:
        from scipy.stats import qmc

        self._space = task.space
        self._sequence: Any = qmc.Sobol(len(task.space.params), scramble=True, rng=task.seed)
        if task.asked:
            self._sequence.fast_forward(task.asked)

    def ask(self) -> Point:
        """Return the next point."""
        return self._space.from_units([float(unit) for unit in self._sequence.random(1)[0]])

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Learn nothing."""
