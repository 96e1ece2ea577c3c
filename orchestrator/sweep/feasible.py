"""Whether a point can be trained at all, found by arithmetic: well-formed, plannable, enough memory, constraints hold.

Costs milliseconds and starts nothing. What is infeasible carries its reason, for the record and for the searcher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import PlanError, Problem
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.spec.expression import Expression, ExpressionError, parse
from orchestrator.spec.job import JobSpec
from orchestrator.spec.problems import find_problems
from orchestrator.spec.resolve import resolved_data
from orchestrator.sweep.point import NoSuchPlaceError, Point, apply_point, value_at

PLAN_NAMES = ("plan.num_params", "plan.flops_per_sample", "plan.world_size", "plan.total_steps", "plan.memory_bytes")


@dataclass(frozen=True)
class Feasible:
    """A point that can be trained: its job and plan."""

    job: JobSpec
    plan: Plan


@dataclass(frozen=True)
class Infeasible:
    """A point that cannot. `kind` is path, job, plan, memory or constraint; `problems` are the job's own, if any."""

    kind: str
    reason: str
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What trials may use: what `build_plan` counts on, and processes per trial at most (None: not known)."""

    available: Available
    most_workers: int | None = None


def judge_point(
    data: Mapping[str, Any], point: Point, constraints: Sequence[str], limits: Limits
) -> Feasible | Infeasible:
    """Return the point's job and plan, or why it has none. `data` is the plain data of the job that is swept."""
    try:
        job_data = apply_point(data, point)
    except NoSuchPlaceError as error:
        return Infeasible("path", str(error))
    job, problems, _ = find_problems(job_data)
    if job is None or problems:
        return Infeasible("job", _said(problems), tuple(problems))
    broken = broken_constraint(job, None, [each for each in constraints if not _needs_plan(each)])
    if broken:
        return Infeasible("constraint", broken)
    try:
        plan = build_plan(job, limits.available, here=Available.local())
    except PlanError as error:
        return Infeasible("plan", _said(error.problems) or error.message, error.problems)
    broken = broken_constraint(job, plan, [each for each in constraints if _needs_plan(each)])
    if broken:
        return Infeasible("constraint", broken)
    reason = _too_large(job, plan, limits)
    return Infeasible("memory", reason) if reason else Feasible(job, plan)


def broken_constraint(job: JobSpec, plan: Plan | None, constraints: Sequence[str]) -> str:
    """Return the first constraint that does not hold, with the values in it; "" when all do."""
    if not constraints:
        return ""
    data = resolved_data(job)

    def look(path: str) -> Any:
        return plan_value(plan, path) if path.startswith("plan.") else value_at(data, path)

    for text in constraints:
        expression = parse(text)
        try:
            if not expression.holds(look):
                return f"{text} does not hold{_values(expression, look)}"
        except ExpressionError as error:
            return f"{text} has no value: {error}"
    return ""


def plan_value(plan: Plan | None, path: str) -> Any:
    """Return what `plan.num_params` and its like stand for. Raises KeyError when the plan does not know it."""
    if plan is None or path not in PLAN_NAMES:
        raise KeyError(path)
    found: dict[str, Any] = {
        "plan.num_params": plan.num_params,
        "plan.flops_per_sample": plan.flops_per_sample,
        "plan.world_size": plan.layout.world_size,
        "plan.total_steps": plan.batch.total_steps,
        "plan.memory_bytes": plan.memory.total_bytes if plan.memory else None,
    }
    if found[path] is None:
        raise KeyError(f"{path} (the model says nothing of itself)")
    return found[path]


def _values(expression: Expression, look: Any) -> str:
    said: list[str] = []
    for name in expression.names:
        with suppress(KeyError):  # `and` and `or` pass over names that this model does not have
            said.append(f"{name} = {look(name)!r}")
    return f" ({', '.join(said)})" if said else ""


def _needs_plan(text: str) -> bool:
    return any(name.startswith("plan.") for name in parse(text).names)


def _said(problems: Sequence[Problem]) -> str:
    return "; ".join(f"{each.path}: {each.message}" if each.path else each.message for each in problems[:3])


def _too_large(job: JobSpec, plan: Plan, limits: Limits) -> str:
    world = plan.layout.world_size
    if limits.most_workers is not None and world > limits.most_workers:
        return f"{plan.layout.describe()} do not fit the cluster, which has room for {limits.most_workers}"
    here = limits.available
    if plan.memory is None or plan.resources.device != "cpu" or job.cluster.address is not None or not here.known:
        return ""
    need = plan.memory.total_bytes * world
    if need <= here.memory_bytes:
        return ""
    parts = "weights, gradients and optimiser state"
    return f"{parts} need {need / 2**30:.1f} GiB (predicted), this machine has {here.memory_bytes / 2**30:.1f} GiB"
