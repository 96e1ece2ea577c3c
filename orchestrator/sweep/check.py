"""Everything that is wrong with a sweep beyond its form, before trial 1: paths, values, objectives, constraints, parts.

`find_sweep_problems` works on plain data, so that its findings and those of the form are told together. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator import plugins
from orchestrator.errors import JobFileError, PlanError, Problem
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.spec.expression import ExpressionError
from orchestrator.spec.job import JobSpec
from orchestrator.spec.problems import find_problems
from orchestrator.spec.resolve import resolved_data
from orchestrator.spec.sweep import SweepParam
from orchestrator.sweep.check_names import name_problems, texts
from orchestrator.sweep.check_objectives import metric_advice, objective_problems
from orchestrator.sweep.check_points import condition_problems, constraint_problems
from orchestrator.sweep.check_population import population_problems
from orchestrator.sweep.check_supernet import is_supernet, points_to_probe, supernet_problems
from orchestrator.sweep.feasible import Feasible, Infeasible, Limits, judge_point
from orchestrator.sweep.objectives import known_metrics
from orchestrator.sweep.point import Point
from orchestrator.sweep.population import breeds
from orchestrator.sweep.space import Param, Space, build_param, sort_params
from orchestrator.wording import join, nearest, shown

_FORBIDDEN = {"sweep": "a sweep cannot change itself", "name": "trials are named by number", "version": "it is fixed"}
_FORBIDDEN |= dict.fromkeys(
    ("track", "cluster.address", "cluster.storage", "cluster.max_failures"), "it belongs to the whole sweep"
)


def build_space(job: JobSpec) -> Space:
    """Return the space of a checked job with a sweep."""
    if job.sweep is None:
        raise JobFileError("the job has no sweep", hint="add a `sweep:` section (docs/sweeps.md)")
    params, circle = sort_params([build_param(path, given) for path, given in job.sweep.space.items()])
    if circle:
        raise JobFileError(f"sweep.space: the `when` of {circle[0].path} goes round in a circle")
    return Space(tuple(params), resolved_data(job.model_copy(update={"sweep": None})))


def find_sweep_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the sweep of a job's plain data; what the form forbids is left to `find_problems`."""
    sweep = data.get("sweep")
    if not isinstance(sweep, Mapping) or not isinstance(sweep.get("space"), Mapping):
        return []
    return _Checker(data, sweep).find()


@dataclass(frozen=True)
class _Base:
    """The job that is swept, as far as it can be had: with a start value in it when it is not valid without."""

    job: JobSpec | None
    plan: Plan | None
    resolved: Mapping[str, Any]
    problems: tuple[Problem, ...]


class _Checker:
    """One check: the pieces that its questions share."""

    def __init__(self, data: Mapping[str, Any], sweep: Mapping[str, Any]) -> None:
        self.data, self.sweep = data, sweep
        self.limits = Limits(Available.unknown())
        self.base = _base(data)
        params, self.circle = sort_params(list(_readable(sweep["space"])))
        self.space = Space(tuple(params), self.base.resolved)
        self.random = random.Random(0)

    def find(self) -> list[Problem]:
        """Ask all questions."""
        found: list[Problem] = []
        for param in self.circle:
            found.append(_at(param, "", "its `when` goes round in a circle", "let one of them stand without `when`"))
        for param in self.space.params:
            found += self._param(param)
        found += self._start()
        found += name_problems(self.data, self.sweep, self.space, self.limits)
        bad = [problem.path for problem in found]
        good = [
            each
            for each in self.space.params
            if not any(f"{path}.".startswith(f"sweep.space.{each.path}.") for path in bad)
        ]
        sound = Space(tuple(good), self.base.resolved)
        found += condition_problems(sound, self.sweep, self.space.params)
        if self.base.job is not None and not any(path.startswith("sweep.constraints") for path in bad):
            found += constraint_problems(self.data, self.sweep, sound, self.limits)
        found += population_problems(self.sweep, self.base.job, self.base.plan, self.space)
        return found + self._objectives() + self._scheduler() + self._length() + self._supernet(found)

    def _param(self, param: Param) -> list[Problem]:
        for path, why in _FORBIDDEN.items():
            if param.path == path or param.path.startswith(f"{path}."):
                return [_at(param, "", f"{path} is not searched: {why}", "")]
        found: list[Problem] = []
        for where, value in param.probes():
            problem = self._refused(param, where, value)
            if problem is not None:
                found.append(problem)
                if problem.code in ("no-path", "unknown-key"):
                    break  # of every value the same would be said
        return found

    def _refused(self, param: Param, where: str, value: Any) -> Problem | None:
        """Return why no job takes this value; None as soon as one does."""
        first: Infeasible | None = None
        for point in self._companions(param, value):
            judged = judge_point(self.data, point, (), self.limits)
            if isinstance(judged, Feasible) or judged.kind in ("plan", "memory"):
                return None  # whether it fits the machine is asked of every point, not of the file
            new = [each for each in judged.problems if each not in self.base.problems]
            if not new and judged.kind == "job":
                return None  # the job has these problems without the sweep, too
            mine = [each for each in new if _is_about(each, param)]
            first = first or Infeasible(judged.kind, judged.reason, tuple(mine or new))
            if mine and mine[0].code == "unknown-key":
                break
        return None if first is None else _as_problem(param, where, value, first)

    def _companions(self, param: Param, value: Any) -> Iterator[Point]:
        """Yield points with this value: alone, then with drawn values of the other parameters."""
        if self.space.is_active(param, {}):
            yield {param.path: value}
        tries = 1 if len(self.space.params) == 1 else 40
        for _ in range(tries):
            drawn = dict(self.space.from_units([self.random.random() for _ in self.space.params]))
            if param.path in drawn:
                yield self._consistent(drawn, param, value)

    def _consistent(self, drawn: dict[str, Any], param: Param, value: Any) -> Point:
        point: dict[str, Any] = {}
        for each in self.space.params:
            if self.space.is_active(each, point):
                point[each.path] = value if each is param else drawn.get(each.path, each.at(self.random.random()))
        return point

    def _start(self) -> list[Problem]:
        found: list[Problem] = []
        points = self.sweep.get("start")
        known = {param.path: param for param in self.space.params}
        for index, point in enumerate(points if isinstance(points, list) else []):
            for path, value in point.items() if isinstance(point, Mapping) else ():
                place = join("sweep.start", index, path)
                if path not in known:
                    close = nearest(path, known)
                    hint = f"did you mean `{close}`?" if close else f"parameters: {', '.join(known)}"
                    found.append(Problem(place, "no parameter of sweep.space", hint, "unknown-key"))
                elif not known[path].holds(value):
                    message = f"{shown(value)} is not in its space ({known[path].describe()})"
                    found.append(Problem(place, message, "give one of its values", "out-of-range"))
        return found

    def _objectives(self) -> list[Problem]:
        given, base = self.sweep.get("objectives"), self.base
        if not isinstance(given, Mapping) or base.job is None or base.plan is None:
            return []
        return list(objective_problems(map(str, given), base.job, base.plan, self.space.params))

    def _scheduler(self) -> list[Problem]:
        use = self.sweep.get("scheduler")
        if not isinstance(use, Mapping) or not isinstance(use.get("use"), str) or self.base.job is None:
            return []
        if plugins.find_problem("schedulers", use["use"]) is not None:
            return []
        if not getattr(plugins.load("schedulers", use["use"]), "uses_metric", False):
            return []
        found = []
        if isinstance(self.sweep.get("repeats"), int) and self.sweep["repeats"] > 1:
            message = f"{use['use']} compares single trainings, and every point has {self.sweep['repeats']} repeats"
            found.append(
                Problem("sweep.repeats", message, "set repeats: 1, or scheduler: {use: fifo}", "contradiction")
            )
        known, metric = self._metrics(), use.get("metric")
        objectives = self.sweep.get("objectives") or {self.base.job.train.monitor.metric: None}
        if metric is None and len([name for name in objectives if name in known]) != 1:
            message = f"{use['use']} needs to know which metric decides: the objectives are {', '.join(objectives)}"
            hint = (
                f"add `metric`, one of {', '.join(known)}" if known else "the job has no validation split to measure on"
            )
            found.append(Problem("sweep.scheduler", message, hint, "metric"))
        elif metric is not None and metric not in known and self.base.plan is not None:
            found.append(
                Problem("sweep.scheduler.metric", "no evaluation reports this", metric_advice(metric, known), "metric")
            )
        elif metric is not None and metric not in objectives and use.get("mode") is None:
            message = f"{metric} is no objective, so its direction is not known"
            found.append(Problem("sweep.scheduler.metric", message, "add `mode: min` or `mode: max`", "metric"))
        return found

    def _supernet(self, found: list[Problem]) -> list[Problem]:
        """What a supernet cannot search; single points are looked at when the space is otherwise in order."""
        if not is_supernet(self.sweep):
            return []
        points = [] if found else points_to_probe(self.space, self.random)
        constraints = texts(self.sweep.get("constraints"))
        judged = [judge_point(self.data, point, constraints, self.limits) for point in points]
        feasible = [each for each in judged if isinstance(each, Feasible)]
        return list(supernet_problems(self.base.job, self.base.plan, self.sweep, self.space, feasible))

    def _metrics(self) -> list[str]:
        base = self.base
        return known_metrics(base.job, base.plan) if base.job is not None and base.plan is not None else []

    def _length(self) -> list[Problem]:
        search = self.sweep.get("search")
        name = search.get("use") if isinstance(search, Mapping) else "random"
        cost = self.sweep.get("cost")
        ends = any(self.sweep.get(key) is not None for key in ("trials", "time_s", "worker_s"))
        ends = ends or (isinstance(cost, Mapping) and cost.get("limit") is not None)
        if name == "grid":
            endless = [param for param in self.space.params if param.count is None]
            return [
                _at(param, "", "grid cannot count a range of real numbers", "add `step`, or list the values")
                for param in endless
            ]
        if ends or breeds(self.sweep) or (isinstance(name, str) and plugins.is_path(name)):
            return []
        return [Problem("sweep", f"{name} never ends by itself", "add `trials: 24`, or `time_s: 600`", "missing-key")]


def _base(data: Mapping[str, Any]) -> _Base:
    plain = {key: value for key, value in data.items() if key != "sweep"}
    job, problems, _ = find_problems(plain)
    if job is None or problems:
        return _Base(None, None, plain, tuple(problems))
    try:
        return _Base(job, build_plan(job, Available.unknown()), resolved_data(job), ())
    except PlanError:
        return _Base(job, None, resolved_data(job), ())


def _readable(space: Mapping[str, Any]) -> Iterator[Param]:
    """Yield the parameters whose description is well-formed."""
    for path, given in space.items():
        if isinstance(given, list) and given:
            yield Param(path, tuple(given))
        elif isinstance(given, Mapping):
            try:
                yield build_param(path, SweepParam.model_validate(dict(given)))
            except (ValidationError, ExpressionError):
                continue


def _is_about(problem: Problem, param: Param) -> bool:
    return f"{problem.path}.".startswith(f"{param.path}.") or f"{param.path}.".startswith(f"{problem.path}.")


def _as_problem(param: Param, where: str, value: Any, refused: Infeasible) -> Problem:
    if refused.kind == "path":
        return _at(
            param, "", f"no such place in the job: {refused.reason}", "`check --resolved` shows all paths", "no-path"
        )
    problem = refused.problems[0] if refused.problems else Problem(param.path, refused.reason)
    if problem.code == "unknown-key":
        return _at(param, "", f"no such key: {problem.path}", problem.hint, "no-path")
    about = "" if problem.path == param.path else f"{problem.path}: "
    at = where if where != "step" else ""
    return _at(param, at, f"{shown(value)} is refused: {about}{problem.message}", problem.hint, "bad-value")


def _at(param: Param, where: str, message: str, hint: str, code: str = "sweep") -> Problem:
    return Problem(join("sweep.space", param.path, where), message, hint, code)
