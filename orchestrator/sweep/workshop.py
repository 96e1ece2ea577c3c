"""`Workshop`: what a searcher may use before its first point, when it says `prepare(workshop)`. Made by the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.cluster.events import Event
from orchestrator.cluster.pool import Pool
from orchestrator.plan.available import Available
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.feasible import Feasible, Infeasible
from orchestrator.sweep.point import Point


@dataclass(frozen=True)
class Workshop:
    """The sweep's folder, job and warm processes. Nothing else runs in the pool meanwhile.

    `available` is what plans count on, `judge` says whether a point can be trained, `starts` are the user's own points.
    `tick` is to be called ten times a second: it keeps the sweep's lease. `spent` says which budget of time or money is
    used up, in words, "" when none is: then save and return soon, too.
    """

    run: RunDir
    job: JobSpec
    pool: Pool
    available: Available
    judge: Callable[[Point], Feasible | Infeasible]
    starts: Sequence[Point]
    on_event: Callable[[Event], None]
    tick: Callable[[], None]
    spent: Callable[[], str] = lambda: ""

    @property
    def stopping(self) -> bool:
        """Whether the sweep was asked to stop: save and return soon."""
        return control.stop_requested(self.run)
