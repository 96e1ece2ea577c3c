"""`Source`: the next point worth training. Start points first, then the searcher's; duplicates and infeasible ones are
answered here, at no cost, and told to the searcher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator import plugins
from orchestrator.cluster.events import Event
from orchestrator.cluster.pool import Pool
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.birth import Birth
from orchestrator.sweep.feasible import Feasible, Infeasible, Limits, judge_point
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import Objective, objectives_of
from orchestrator.sweep.point import Point, plain_copy, point_hash, value_at
from orchestrator.sweep.search import About, Outcome, Searcher, SearchTask
from orchestrator.sweep.space import Space
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.workshop import Workshop

MAX_IN_A_ROW = 500
"""Points in a row that give no new feasible one before the search counts as exhausted."""
POINTS_A_TICK = 20
"""Points looked at in one call: each takes milliseconds, and the caller has trials to answer meanwhile."""


class Source:
    """Where trials come from. `ended` says why there are no more, "" while there are; a new result opens it again.

    `is_searching` says that the last call ended without an answer: ask again.
    """

    def __init__(self, data: Mapping[str, Any], job: JobSpec, space: Space, ledger: Ledger, limits: Limits) -> None:
        self._data, self._sweep, self._space = data, _sweep_of(job), space
        self._ledger, self._limits = ledger, limits
        self.objectives: tuple[Objective, ...] = objectives_of(job)
        self.ended = ""
        self.is_searching = False
        self._in_a_row = 0
        self._asked = ledger.asked
        task = SearchTask(space, self.objectives, self._sweep.seed, self._asked)
        self.searcher: Searcher = plugins.build("searchers", self._sweep.search.use, self._sweep.search.options, task)
        self._starts = self._start_points()
        for trial in ledger.trials.values():
            if trial.is_over:
                self.searcher.tell(trial.point, outcome_of(trial))

    @property
    def size(self) -> int | None:
        """Trials that there are to be; None: no end to them."""
        return self._sweep.trials or self._space.size()  # to count a space with conditions takes seconds

    def needed(self) -> set[int]:
        """Return the ended trials whose checkpoints are still needed."""
        return set()

    def judge(self, trial: Trial) -> Feasible | None:
        """Return the job and plan of a trial; one that is infeasible is closed as such."""
        judged = self.judge_point(trial.values_by_path)
        if isinstance(judged, Feasible):
            return judged
        self._ledger.end(trial, "infeasible", reason=judged.reason)
        self.tell(trial)
        return None

    def judge_point(self, point: Point) -> Feasible | Infeasible:
        """Return the job and plan of a point, or why it has none."""
        return judge_point(self._data, point, self._sweep.constraints, self._limits)

    def workshop(
        self,
        run: RunDir,
        job: JobSpec,
        pool: Pool,
        on_event: Callable[[Event], None],
        tick: Callable[[], None],
        spent: Callable[[], str] = lambda: "",
    ) -> Workshop:
        """Return what the searcher may use before its first point."""
        starts = [complete(given, self._space) for given in self._sweep.start]
        return Workshop(run, job, pool, self._limits.available, self.judge_point, starts, on_event, tick, spent)

    def next(self) -> tuple[Trial, Feasible] | None:
        """Return a new feasible trial; None when there are no more, or when `is_searching`."""
        self.is_searching = False
        if self.ended:
            return None
        finite = bool(getattr(self.searcher, "finite", False))  # a grid ends by itself
        for _ in range(POINTS_A_TICK):
            if not finite and self._in_a_row >= MAX_IN_A_ROW:
                self._in_a_row = 0
                self.ended = f"{MAX_IN_A_ROW} points in a row were infeasible or tried before"
                return None
            found = self._next_point()
            if found is None:
                self.ended = getattr(self.searcher, "exhausted", "every point of the space was tried")
                return None
            feasible = self._look_at(*found)
            if feasible is not None:
                self._in_a_row = 0
                return feasible
            self._in_a_row += 1
        self.is_searching = True
        return None

    def _look_at(self, point: Point, origin: str) -> tuple[Trial, Feasible] | None:
        """Return the point's trial; None when there is one already, or it is infeasible (the searcher is told)."""
        known = self._ledger.by_digest.get(point_hash(point))
        if known is not None:
            if known.is_over:
                self.searcher.tell(point, outcome_of(known))
            return None
        about: About = self.searcher.about(point) if hasattr(self.searcher, "about") else About()
        trial = self._ledger.propose(
            point,
            origin=about.origin or origin,
            asked=self._asked,
            settings=about.settings,
            predicted=about.predicted,
            ranked_by=about.ranked_by,
            birth=self._birth(),
        )
        feasible = self.judge(trial)
        return None if feasible is None else (trial, feasible)

    def tell(self, trial: Trial) -> None:
        """Let the searcher learn how a trial ended."""
        self.ended = ""
        self.searcher.tell(trial.point, outcome_of(trial))

    def _next_point(self) -> tuple[Point, str] | None:
        start = next(self._starts, None)
        if start is not None:
            return start, "start"
        self._asked += 1
        point = self.searcher.ask()
        return None if point is None else (point, "search")

    def _birth(self) -> Birth | None:
        return None

    def _start_points(self) -> Iterator[Point]:
        for given in self._sweep.start:
            yield complete(given, self._space)


def complete(given: Mapping[str, Any], space: Space) -> Point:
    """Return a start point with every parameter: what it leaves out is as in the job, else the middle of its range."""
    point: dict[str, Any] = {}
    for param in space.params:
        if not space.is_active(param, point):
            continue
        if param.path in given:
            point[param.path] = plain_copy(given[param.path])
            continue
        try:
            own = value_at(space.base, param.path)
        except KeyError:
            own = None
        point[param.path] = own if param.holds(own) else param.at(0.5)
    return point


def outcome_of(trial: Trial) -> Outcome:
    """Return what a searcher is told of an ended trial."""
    return Outcome(trial.state, dict(trial.values), trial.reason)


def _sweep_of(job: JobSpec) -> SweepSection:
    if job.sweep is None:
        raise ValueError("the job has no sweep")
    return job.sweep
