"""`Progress`: what a run knows of itself between steps besides tensors. Saved with every checkpoint as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.spec.job import MonitorSection


@dataclass
class Progress:
    """Steps done, the best evaluation so far, and counters. The sample position follows from `step` alone.

    `train_s`: seconds of training that led here, over all attempts; `step_s`: those of a step, in the newest attempt.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    train_s: float = 0.0
    step_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Rebuild from `as_json`."""
        return cls(**values)

    def anew(self) -> Progress:
        """Return the progress of a training that begins here, from another's state: what it counts is its own."""
        return Progress(self.step, skipped_in_a_row=self.skipped_in_a_row, last_metrics=dict(self.last_metrics))

    def judge(self, metrics: Mapping[str, float], monitor: MonitorSection) -> bool:
        """Take note of an evaluation; say whether it is the best so far. A value that is not finite never is."""
        self.last_metrics = dict(metrics)
        value = metrics.get(monitor.metric)
        if value is None or not math.isfinite(value):
            self.evaluations_without_gain += 1
            return False
        gain = math.inf if self.best_value is None else self.best_value - value
        if monitor.mode == "max" and self.best_value is not None:
            gain = -gain
        if gain > monitor.min_delta:
            self.best_value, self.best_step, self.best_metrics = value, self.step, dict(metrics)
            self.evaluations_without_gain = 0
            return True
        self.evaluations_without_gain += 1
        return False

    def should_stop_early(self, monitor: MonitorSection) -> bool:
        """Say whether patience has run out."""
        return monitor.patience is not None and self.evaluations_without_gain >= monitor.patience
