"""What a sweep over `parallel.*` found: seconds a step of each layout, predicted beside measured.

The prediction is arithmetic over one measured trial: every axis shares out the work of a step, a pipeline's ranks also
wait for its bubble, and what ranks say to one another is not counted. measured / predicted is therefore what
communication, uneven shares and the machine's own limits cost. Nothing is predicted where nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.plan.available import Available
from orchestrator.plan.plan import Plan
from orchestrator.sweep.feasible import Feasible, Limits, judge_point
from orchestrator.sweep.point import Point
from orchestrator.sweep.space import Space
from orchestrator.sweep.trial import Trial


@dataclass(frozen=True)
class LayoutRow:
    """One trial's layout. `measured_s` and `predicted_s` are seconds a step; `reference` is the trial predicted from.

    `memory_bytes` is what the plan predicts for a rank: weights, gradients, optimiser state (None: not known).
    """

    trial: str
    layout: str
    measured_s: float
    predicted_s: float
    reference: str
    memory_bytes: int | None

    @property
    def is_reference(self) -> bool:
        """Whether the prediction is the measurement itself."""
        return self.trial == self.reference

    def describe(self) -> str:
        """Return `2 ranks = replicate 2: 4.1 ms a step measured, 3.2 predicted (1.28 x)`."""
        measured = f"{self.layout}: {1000 * self.measured_s:.3g} ms a step measured"
        if self.is_reference:
            return f"{measured}; others are predicted from it"
        return f"{measured}, {1000 * self.predicted_s:.3g} predicted ({self.measured_s / self.predicted_s:.2f} x)"


def layout_rows(data: Mapping[str, Any], space: Space, trials: Iterable[Trial]) -> list[LayoutRow]:
    """Return a row for every trial that trained; trials that differ in more than the layout are not compared.

    Of each such group the trial with the fewest ranks is the reference, of several the fastest. Empty for a sweep that
    searches nothing under `parallel`.
    """
    if not any(_is_layout(param.path) for param in space.params):
        return []
    groups: dict[str, list[tuple[Trial, Plan]]] = {}
    for trial in trials:
        judged = judge_point(data, trial.point, (), Limits(Available.unknown()))
        if trial.values.get("time/step_s", 0.0) > 0 and isinstance(judged, Feasible):
            groups.setdefault(_others(trial.point), []).append((trial, judged.plan))
    return [row for group in groups.values() for row in _rows(group)]


def rows_as_data(rows: Sequence[LayoutRow]) -> list[dict[str, Any]]:
    """Return plain JSON-ready values."""
    return [asdict(row) for row in rows]


def _rows(group: Sequence[tuple[Trial, Plan]]) -> list[LayoutRow]:
    reference, plan = min(group, key=lambda pair: (pair[1].layout.world_size, _measured(pair[0])))
    work = _measured(reference) / _time_of_unit_work(plan)
    rows = [
        LayoutRow(
            trial.name,
            plan.layout.describe() + (f", {plan.stages.schedule}" if plan.stages is not None else ""),
            _measured(trial),
            work * _time_of_unit_work(plan),
            reference.name,
            plan.memory.total_bytes if plan.memory is not None else None,
        )
        for trial, plan in group
    ]
    return sorted(rows, key=lambda row: row.measured_s)


def _time_of_unit_work(plan: Plan) -> float:
    """Return how long a step takes whose work takes one process a unit of time, if speaking to others were free."""
    bubble = plan.stages.ideal_bubble if plan.stages is not None else 0.0
    return 1.0 / (plan.layout.world_size * (1.0 - bubble))


def _measured(trial: Trial) -> float:
    return trial.values["time/step_s"]


def _others(point: Point) -> str:
    return json.dumps({path: value for path, value in point.items() if not _is_layout(path)}, sort_keys=True)


def _is_layout(path: str) -> bool:
    return path == "parallel" or path.startswith("parallel.")
