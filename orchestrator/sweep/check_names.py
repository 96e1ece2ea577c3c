"""Do constraints and conditions of a sweep speak of values that some trial's job has? Called by `sweep.check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.errors import Problem
from orchestrator.spec.expression import Expression, ExpressionError, parse
from orchestrator.spec.resolve import resolved_data
from orchestrator.sweep.feasible import PLAN_NAMES, Feasible, Limits, judge_point
from orchestrator.sweep.space import Space
from orchestrator.wording import join, nearest


def name_problems(data: Mapping[str, Any], sweep: Mapping[str, Any], space: Space, limits: Limits) -> list[Problem]:
    """Return a problem for every name that stands for nothing in any trial."""
    found = [(join("sweep.constraints", n), parsed(text)) for n, text in enumerate(texts(sweep.get("constraints")))]
    found += [(join("sweep.space", param.path, "when"), param.when) for param in space.params]
    paths = list(_all_paths(data, space, limits)) if any(each is not None for _, each in found) else []
    unknown = [problem for place, each in found if each is not None for problem in _unknown(place, each, paths)]
    return [*unknown, *_planned_conditions(space), *_early_times(sweep)]


def _planned_conditions(space: Space) -> Iterator[Problem]:
    """A condition is asked before there is a whole job to plan, so the plan's names would never have a value in it."""
    for param in space.params:
        for name in param.when.names if param.when is not None else ():
            if name.startswith("plan."):
                place, message = join("sweep.space", param.path, "when"), f"{name} is known of whole jobs only"
                yield Problem(place, message, "put it into sweep.constraints, or speak of the job's keys", "no-path")


def _early_times(sweep: Mapping[str, Any]) -> Iterator[Problem]:
    """A trial that was ended early took little time, which is no merit: it would lead the front for that alone."""
    objectives, scheduler = sweep.get("objectives"), sweep.get("scheduler")
    use = scheduler.get("use") if isinstance(scheduler, Mapping) else None
    if isinstance(objectives, Mapping) and "time/train_s" in objectives and use not in (None, "fifo"):
        message = f"{use} ends trials early, whose time would then be little for that reason alone"
        yield Problem("sweep.objectives", message, "leave the scheduler out, or time/train_s", "early-times")


def _unknown(place: str, expression: Expression, paths: Sequence[str]) -> Iterator[Problem]:
    for name in expression.names:
        known = PLAN_NAMES if name.startswith("plan.") else paths
        if name in known or _is_item_of(name, known):
            continue
        close = nearest(name, known)
        hint = f"did you mean `{close}`?" if close else "`orchestrator check JOB --resolved` shows all paths"
        yield Problem(place, f"'{expression.text}' speaks of {name}, which no trial has", hint, "no-path")


def _all_paths(data: Mapping[str, Any], space: Space, limits: Limits) -> dict[str, None]:
    paths = dict.fromkeys(_paths(space.base))
    for param in space.params:
        paths[param.path] = None
        for value in param.values or ():
            paths |= dict.fromkeys(join(param.path, each) for each in _paths(value))
            use = value.get("use") if isinstance(value, Mapping) else value if param.path.endswith("use") else None
            if use is not None:  # another part has other keys, with defaults
                judged = judge_point(data, {param.path: value}, (), limits)
                paths |= dict.fromkeys(_paths(resolved_data(judged.job)) if isinstance(judged, Feasible) else ())
    return paths


def texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def parsed(text: str) -> Expression | None:
    try:
        return parse(text)
    except ExpressionError:
        return None


def _paths(value: Any, above: str = "") -> Iterator[str]:
    if above:
        yield above
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from _paths(each, join(above, key))


def _is_item_of(name: str, known: Sequence[str]) -> bool:
    """`model.channels.3` may be there in some trial though the base's list is shorter."""
    parent, _, last = name.rpartition(".")
    return last.isdigit() and parent in known
