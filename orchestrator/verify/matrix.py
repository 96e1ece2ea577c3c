"""The matrix: every registered model under every layout on given numbers of ranks, in float64.

Under a pipeline with every schedule; with split sequences by heads and by ring. A cell either runs and is compared, or
says why the plan does not accept it: nothing is supported but untested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from orchestrator import plugins
from orchestrator.errors import PlanError
from orchestrator.plan.layout import Layout
from orchestrator.plan.stages import SCHEDULES
from orchestrator.spec.job import JobSpec
from orchestrator.verify.compare import Comparison
from orchestrator.verify.facts import TOLERANCE
from orchestrator.verify.layouts import Candidate, candidate_of, factorisations, on_cpus, ways, with_layout
from orchestrator.verify.matrix_models import matrix_jobs
from orchestrator.verify.run import verify_candidates

GATE = TOLERANCE["fp64"]


@dataclass(frozen=True)
class Cell:
    """One model under one layout and schedule: the worst difference, or why there is none."""

    model: str
    ranks: int
    layout: str
    schedule: str
    """Empty without a pipeline."""
    difference: float | None
    name: str = ""
    """The tensor (or the group) that differs most."""
    unsupported: str = ""
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it ran and is within the gate, or is not supported."""
        return not self.error and (self.difference is None or self.difference <= GATE)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True)
class Spot:
    """A cell before it has been run: a candidate that fits, or why the plan refuses it."""

    model: str
    layout: Layout
    schedule: str
    candidate: Candidate | None
    unsupported: str = ""
    attention: str | None = None
    """How attention brings pieces of sequences together; None where they are whole."""


def missing_models() -> list[str]:
    """Return registered models for which there is no small job here (those of other packages, as a rule)."""
    known = {job.model.use for job in matrix_jobs().values()}
    return [name for name in plugins.names("models") if name not in known]


def spots(models: Iterable[str], ranks: Sequence[int]) -> list[Spot]:
    """Return every cell of these rows on these numbers of ranks, planned but not run."""
    jobs = matrix_jobs()
    found = []
    for model in models:
        for layout in factorisations(max(ranks)):
            if layout.world_size in ranks:
                kinds = product(_schedules(layout), ways(layout))
                found += [_spot(model, on_cpus(jobs[model]), layout, *kind) for kind in kinds]
    return found


def sample(among: Sequence[Spot], count: int, seed: int) -> list[Spot]:
    """Return some of the cells that fit, by a seeded choice."""
    fitting = [spot for spot in among if spot.candidate is not None]
    return random.Random(seed).sample(fitting, min(count, len(fitting)))


def run_spots(among: Sequence[Spot], num_steps: int, on_cell: Callable[[Cell], None] = lambda cell: None) -> list[Cell]:
    """Run every cell that fits, model by model, and compare it with one process."""
    done: list[Cell] = []
    for model in dict.fromkeys(spot.model for spot in among):
        mine = [spot for spot in among if spot.model == model]
        by_label = {spot.candidate.label: spot for spot in mine if spot.candidate is not None}
        for spot in mine:
            if spot.candidate is None:
                done.append(_cell(spot, None, unsupported=spot.unsupported))

        def finished(found: Comparison, by_label: Mapping[str, Spot] = by_label) -> None:
            done.append(_judged(by_label[found.layout], found))
            on_cell(done[-1])

        candidates = [spot.candidate for spot in mine if spot.candidate is not None]
        if candidates:
            job = on_cpus(matrix_jobs()[model])
            verify_candidates(job, candidates, ["fp64"], num_steps=num_steps, on_result=finished)
    return done


def _spot(model: str, job: JobSpec, layout: Layout, schedule: str, attention: str | None) -> Spot:
    try:
        candidate = candidate_of(with_layout(job, layout, schedule or None, attention))
        return Spot(model, layout, schedule, candidate, attention=attention)
    except PlanError as error:
        problem = error.problems[0] if error.problems else None
        message = problem.message if problem else error.message
        why = message.replace(f"model {job.model.use} ", "the model ")
        return Spot(model, layout, schedule, None, why, attention)


def _schedules(layout: Layout) -> tuple[str, ...]:
    return SCHEDULES if layout.pipeline > 1 else ("",)


def _judged(spot: Spot, found: Comparison) -> Cell:
    if found.error.startswith("PlanError"):
        return _cell(spot, None, unsupported=found.error.partition(": ")[2])
    if found.error:
        return _cell(spot, None, error=found.error)
    gated = [worst for worst in found.groups if worst.tolerance <= GATE]
    if not gated:
        return _cell(spot, None, unsupported="runs, but is another loss: balance is judged on pieces of sequences")
    worst = max(gated, key=lambda each: each.difference if each.difference == each.difference else float("inf"))
    return _cell(spot, worst.difference, name=worst.name or worst.group)


def _cell(spot: Spot, difference: float | None, **rest: str) -> Cell:
    label = spot.layout.describe().partition(" = ")[2] + (", ring" if spot.attention == "ring" else "")
    return Cell(spot.model, spot.layout.world_size, label, spot.schedule, difference, **rest)
