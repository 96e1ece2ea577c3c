"""Searchers: where points come from, by `ask` and `tell`. Here the protocol, random and grid; more beside it.

A searcher decides points only. Feasibility, duplicates, budgets and early stopping are the driver's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.point import Point
from orchestrator.sweep.space import Space


@dataclass(frozen=True)
class Outcome:
    """What became of a point. `state` is finished, stopped (early), infeasible, oom, diverged or failed.

    `values` holds the objectives of a finished or stopped trial as far as they are known; `reason` says why not.
    """

    state: str
    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class SearchTask:
    """What a searcher is built for. `asked` is how many points were asked before (a sweep that is resumed)."""

    space: Space
    objectives: Sequence[Objective]
    seed: int = 0
    asked: int = 0


@dataclass(frozen=True)
class About:
    """What a searcher says of a point that it asked. `origin`: whence it is, "" as usual.

    `settings` are further values of the trial's job, by path: they do not vary, so they are no part of the point.
    `predicted`: metrics that the searcher expects of the trial; what comes is compared with them at the end.
    `ranked_by` names the supernet that they come from: a sweep may have several, and figures of two are never pooled.
    """

    origin: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    ranked_by: str = ""


class Searcher(Protocol):
    """What a plug-in of the group `searchers` builds: `build(config, task)` returns one.

    It may also have `prepare(workshop)`, called once before the first point (see `sweep.workshop`), `about(point)`,
    which returns an `About`, and the attributes `finite` (it ends by itself) and `exhausted` (why it does, in words).
    """

    def ask(self) -> Point | None:
        """Return the next point, values by path of the parameters that are there; None: there are no more."""

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Learn what became of a point, asked here, given by the user, or known from before."""


class Random:
    """Points drawn independently: number n is a function of the seed and n."""

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> Random:
        """Return the searcher."""
        return cls(task)

    def __init__(self, task: SearchTask) -> None:
        self._task = task
        self._asked = task.asked

    def ask(self) -> Point:
        """Return the next point."""
        numbers = random.Random(f"{self._task.seed}/{self._asked}")
        self._asked += 1
        return self._task.space.from_units([numbers.random() for _ in self._task.space.params])

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Learn nothing."""


class Grid:
    """Every point once, the last parameter changing fastest; ranges need a `step`, or whole numbers."""

    @dataclass(frozen=True)
    class Config:
        """`shuffle`: in an order drawn by the sweep's seed, so that a part of the grid already covers all of it."""

        shuffle: bool = False

    finite = True

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> Grid:
        """Return the searcher."""
        return cls(task, config.shuffle)

    def __init__(self, task: SearchTask, shuffle: bool = False) -> None:
        points = list(task.space.grid()) if shuffle else None
        if points is not None:
            random.Random(task.seed).shuffle(points)
        self._points: Iterator[Point] = iter(points) if points is not None else task.space.grid()

    def ask(self) -> Point | None:
        """Return the next point; those that were trained before come again and are told apart by the driver."""
        return next(self._points, None)

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Learn nothing."""
