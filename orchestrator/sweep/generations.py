"""`Generations`: the source of trials of a population, one generation after the other.

What it gives next follows from the ledger alone, so that a sweep that is resumed goes on with the same population.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import chain
from typing import Any, cast

from orchestrator import plugins
from orchestrator.checkpoint.fork import take
from orchestrator.errors import JobFileError
from orchestrator.plan.plan import BatchPlan
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.birth import Birth
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import objectives_of
from orchestrator.sweep.pbt import MOST_ATTEMPTS
from orchestrator.sweep.population import Breeder, Child, Standing, breeds
from orchestrator.sweep.search import SearchTask
from orchestrator.sweep.source import POINTS_A_TICK, Source
from orchestrator.sweep.space import Space
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import trial_folder

TRIES = 200
Seats = dict[int, Trial]


class Generations(Source):
    """Gives the first generation as any source does, and breeds the others."""

    def __init__(self, data: Mapping[str, Any], job: JobSpec, space: Space, ledger: Ledger, limits: Limits) -> None:
        """Raises JobFileError when no point of the space gives a job that can be planned."""
        super().__init__(data, job, space, ledger, limits)
        self._breeder = cast(Breeder, self.searcher)
        self._ends = ends_of(_batch_of(data, space, limits), self._breeder.interval)

    @property
    def size(self) -> int:
        """Trials of all generations."""
        return self._breeder.population * len(self._ends)

    def next(self) -> tuple[Trial, Feasible] | None:
        """Return the next member; None when there are no more, when `is_searching`, or until a generation is over."""
        self.is_searching = False
        if self.ended:
            return None
        for _ in range(POINTS_A_TICK):
            generation = self._current()
            if generation is None:
                self.ended = f"all {len(self._ends)} generations"
                return None
            if generation == 0:
                return super().next()
            former = self._seats(generation - 1)
            if not all(trial.is_over for trial in former.values()):
                self.ended = "the generation before is under way"
                return None
            found = self._breed(generation, former)
            if found is not None or self.ended:
                return found
        self.is_searching = True
        return None

    def needed(self) -> set[int]:
        """Return the trials from whose checkpoints others may still begin."""
        found: set[int] = set()
        for generation in range(len(self._ends) - 1):
            children = self._seats(generation + 1)
            if len(children) < self._breeder.population or any(each.fork is None for each in children.values()):
                found |= {each.number for each in self._seats(generation).values() if each.state == "finished"}
        return found

    def _birth(self) -> Birth | None:
        """Return which member a point of the first generation is to be."""
        return Birth(0, self._free(0), begins=0, until=self._ends[0])

    def _current(self) -> int | None:
        """Return the first generation that still lacks members; None when all are complete."""
        whole = self._breeder.population
        return next((index for index in range(len(self._ends)) if len(self._seats(index)) < whole), None)

    def _breed(self, generation: int, former: Seats) -> tuple[Trial, Feasible] | None:
        """Return a trial of the generation; None when it is infeasible, or the search `ended`."""
        member = self._free(generation)
        tried = sum(_is_at(trial, generation, member) for trial in self._ledger.trials.values())
        standings = [self._standing(each, trial) for each, trial in sorted(former.items())]
        child = self._breeder.breed(generation, member, tried, standings)
        if child is None:
            self.ended = f"no member of generation {generation - 1} has a result"
            return None
        if tried > MOST_ATTEMPTS:
            self.ended = f"member {member} of generation {generation} is infeasible with its parent's values, too"
            return None
        return self._judged(child, Birth(
            generation, member, self._ends[generation - 1], self._ends[generation], former[child.parent].number
        ))  # fmt: skip

    def _judged(self, child: Child, birth: Birth) -> tuple[Trial, Feasible] | None:
        origin = "explored" if child.is_changed else "kept" if child.parent == birth.member else "copied"
        trial = self._ledger.propose(child.point, origin=origin, asked=self._asked, birth=birth)
        feasible = self.judge(trial)
        return None if feasible is None else (trial, feasible)

    def _standing(self, member: int, trial: Trial) -> Standing:
        """Judge a member by its newest evaluation, since it is that checkpoint which others would begin from."""
        step, metrics = trial.curve[-1] if trial.curve else (0, {})
        whole = trial.state == "finished" and trial.birth is not None and step == trial.birth.until
        objective = self.objectives[0]
        score = objective.score(metrics.get(objective.name, math.nan)) if whole else -math.inf
        return Standing(member, score, trial.point)

    def _seats(self, generation: int) -> Seats:
        """Return the members of a generation that there are; infeasible ones do not count."""
        return {
            trial.birth.member: trial
            for trial in self._ledger.trials.values()
            if trial.birth is not None and trial.birth.generation == generation and trial.state != "infeasible"
        }

    def _free(self, generation: int) -> int:
        taken = self._seats(generation)
        return next(member for member in range(self._breeder.population) if member not in taken)


def _is_at(trial: Trial, generation: int, member: int) -> bool:
    birth = trial.birth
    return birth is not None and (birth.generation, birth.member) == (generation, member)


def ends_of(batch: BatchPlan, interval: int) -> list[int]:
    """Return the steps at which generations of so many evaluations end; the last is the training's own, maybe early."""
    every, total = batch.eval_every_steps, batch.total_steps
    whole = batch.count_due(every, total)
    numbers = [min(whole, number) for number in range(interval, whole + interval, interval)]
    return [_step_of(batch, number) for number in numbers]


def _step_of(batch: BatchPlan, number: int) -> int:
    """Return the step of an evaluation, by halving."""
    low, high = 1, batch.total_steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if batch.count_due(batch.eval_every_steps, middle) >= number else (middle + 1, high)
    return low


def build_source(data: Mapping[str, Any], job: JobSpec, space: Space, ledger: Ledger, limits: Limits) -> Source:
    """Return where the trials of a sweep come from."""
    sweep = job.sweep.model_dump(mode="json") if job.sweep is not None else {}
    kind = Generations if breeds(sweep) else Source
    return kind(data, job, space, ledger, limits)


def trials_of(data: Mapping[str, Any], job: JobSpec, space: Space, limits: Limits) -> int | None:
    """Return how many trials the sweep is to have; None when nothing says so.

    Raises JobFileError when a population's job cannot be planned at any point.
    """
    sweep = job.sweep
    if sweep is None or sweep.trials is not None or not breeds(sweep.model_dump(mode="json")):
        return sweep.trials if sweep is not None else None
    task = SearchTask(space, objectives_of(job))
    breeder: Breeder = plugins.build("searchers", sweep.search.use, sweep.search.options, task)
    return breeder.population * len(ends_of(_batch_of(data, space, limits), breeder.interval))


def _batch_of(data: Mapping[str, Any], space: Space, limits: Limits) -> BatchPlan:
    """Return how the training is cut up, which is the same at every point: none may change it."""
    numbers = random.Random(0)
    drawn = (space.from_units([numbers.random() for _ in space.params]) for _ in range(TRIES))
    why = ""
    for point in chain([{}], drawn):
        judged = judge_point(data, point, (), limits)
        if isinstance(judged, Feasible):
            return judged.plan.batch
        why = judged.reason
    raise JobFileError(
        f"none of {TRIES} drawn points gives a job that can be planned; of the last one: {why}",
        hint="use a larger machine or cluster, or widen the space",
    )


def begin_from_parent(run: RunDir, ledger: Ledger, trial: Trial) -> None:
    """Give a trial its parent's checkpoint, once. Raises CheckpointError when that is gone."""
    birth = trial.birth
    if birth is None or birth.parent is None or trial.fork is not None:
        return
    parent = trial_folder(run, ledger.trials[birth.parent], 0)
    ledger.fork(trial, take(parent.checkpoints, birth.begins, trial_folder(run, trial, 0).checkpoints))
