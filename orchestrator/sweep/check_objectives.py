"""Does every trial of a sweep give the numbers that are its objectives? Called by `sweep.check`, before trial 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.errors import Problem
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.objectives import DERIVED, compressed_names, known_metrics, says_of_itself
from orchestrator.sweep.space import Param
from orchestrator.wording import join, nearest

_ITSELF = ("model/params", "model/flops")


def objective_problems(names: Iterable[str], job: JobSpec, plan: Plan, params: Sequence[Param]) -> Iterator[Problem]:
    """Yield a problem for every objective that some trial does not give."""
    known, bare = [*known_metrics(job, plan), *DERIVED], _without_steps(job, params)
    for name in names:
        place = join("sweep.objectives", name)
        if name in _ITSELF and not says_of_itself(job):
            message = f"model {job.model.use} says nothing of itself, so {name} is not known"
            yield Problem(place, message, "give the model a Config and a shape (docs/plugins.md)", "metric")
        elif name.startswith("compress/") and bare:
            yield Problem(
                place, f"no compressed file to measure: {bare}", "give every trial `compress.steps`", "metric"
            )
        elif name not in known and name not in (given := [] if bare else compressed_names(job, plan)):
            yield Problem(place, "no trial reports this", metric_advice(name, [*known, *given]), "metric")


def metric_advice(name: str, known: Sequence[str]) -> str:
    """Return which name may have been meant, and which there are."""
    close = nearest(name, known)
    return (f"did you mean `{close}`? " if close else "") + f"reported are: {', '.join(known) or 'none'}"


def _without_steps(job: JobSpec, params: Sequence[Param]) -> str:
    """Say which trials are not compressed; "" when all are."""
    given = [param for param in params if param.path in ("compress", "compress.steps")]
    for param in given:
        for index, value in enumerate(param.values or ()):
            if not _steps_of(param.path, value):
                return f"{join('sweep.space', param.path, str(index))} has no steps"
    if job.compress.steps or any(param.when is None for param in given):
        return ""
    return "the job has no `compress.steps`"


def _steps_of(path: str, value: Any) -> Any:
    return value.get("steps") if path == "compress" and isinstance(value, Mapping) else value
