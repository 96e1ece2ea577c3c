"""What a sweep looks for: which numbers a trial gives, their direction, repeats put together, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from orchestrator import plugins
from orchestrator.plan.match import METRICS_OF_LOSS
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

Direction = Literal["min", "max"]
DERIVED = {
    "model/params": "number of weights (from the plan)",
    "model/flops": "floating-point operations of a forward pass on one sample (from the plan)",
    "time/latency_ms": "milliseconds for one sample, measured after training while nothing else trains",
    "time/step_s": "mean seconds of a training step, the first left out (measured, in whatever company the trial had)",
    "time/train_s": "seconds of training (measured, in whatever company the trial had)",
}
MEASURED = {"time/latency_ms", "compress/latency_ms"}
"""Objectives that take an exclusive moment after each trial; measured only when they are asked for."""
COMPRESSED = {
    "compress/size_bytes": "bytes of all files that running the compressed model takes",
    "compress/size_ratio": "the fp32 weights file's bytes over these",
    "compress/latency_ms": "milliseconds for a sample, one thread or a GPU, measured from the compressed file (alone)",
}
"""Beside `compress/` before each metric of the validation split: that of the compressed file."""


@dataclass(frozen=True)
class Objective:
    """A number to make small or large."""

    name: str
    direction: Direction

    def score(self, value: float) -> float:
        """Return the value such that more is better; what is not finite is worst."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.direction == "max" else -value


def objectives_of(job: JobSpec) -> tuple[Objective, ...]:
    """Return the sweep's objectives, else what the job monitors."""
    given = job.sweep.objectives if job.sweep is not None else {}
    if given:
        return tuple(Objective(name, direction) for name, direction in given.items())
    return (Objective(job.train.monitor.metric, job.train.monitor.mode),)


def known_metrics(job: JobSpec, plan: Plan) -> list[str]:
    """Return what evaluations of this job report on the validation split; empty when it has none."""
    counted = plan.data.target_kind != "unknown"
    if counted and not plan.data.num_samples.get("val"):
        return []
    if job.train.metrics is None:
        names = list(METRICS_OF_LOSS.get(plan.loss, ()))
    else:
        names = [use.use.replace(":", ".").rsplit(".", 1)[-1].lower() for use in job.train.metrics]
    return ["val/loss", *(f"val/{name}" for name in names)]


def compressed_names(job: JobSpec, plan: Plan) -> list[str]:
    """Return what a trial that is compressed gives beyond one that is not."""
    return [*(f"compress/{name}" for name in known_metrics(job, plan)), *COMPRESSED]


def later_names(objectives: Iterable[Objective]) -> set[str]:
    """Return the objectives that are known only some time after training."""
    return {each.name for each in objectives if each.name in MEASURED or each.name.startswith("compress/")}


def derived_values(plan: Plan, result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a trial that no evaluation reports; without what the model does not say."""
    found = {"time/train_s": float(result["train_s"])}
    if "step_s" in result:  # not in a training that an older version kept
        found["time/step_s"] = float(result["step_s"])
    if plan.num_params is not None:
        found["model/params"] = float(plan.num_params)
    if plan.flops_per_sample is not None:
        found["model/flops"] = float(plan.flops_per_sample)
    return found


def says_of_itself(job: JobSpec) -> bool:
    """Say whether the model gives its numbers before it is built."""
    return plugins.light_config("models", job.model.use) is not None


def aggregate(values: Sequence[Mapping[str, float]], how: str, objectives: Sequence[Objective]) -> dict[str, float]:
    """Return the repeats of a point as one set of values: for objectives by `how`, the mean of everything else."""
    directions = {objective.name: objective for objective in objectives}
    found: dict[str, float] = {}
    for name in values[0] if values else ():
        column = [each[name] for each in values if name in each]
        if name not in directions or how == "mean":
            found[name] = fmean(column)
        elif how == "median":
            found[name] = float(median(column))
        else:
            found[name] = min(column, key=directions[name].score)
    return found


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Say whether scores `one` (more is better) are nowhere worse than `other` and somewhere better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def pareto_front(scores: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the keys of those that nothing dominates, best in the first objective first; of equals all."""
    front = [
        key for key, mine in scores.items() if not any(dominates(other, mine) for other in scores.values())
    ]  # fmt: skip
    return sorted(front, key=lambda key: [-value for value in scores[key]] + [key])


def scores_of(values: Mapping[str, float], objectives: Iterable[Objective]) -> list[float]:
    """Return the scores of a trial's values; an objective that is missing is worst."""
    return [objective.score(values.get(objective.name, math.nan)) for objective in objectives]
