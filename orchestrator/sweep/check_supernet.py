"""Can a supernet search this space? Every point must be a part of one wide net. Called by `sweep.check`, torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from orchestrator.errors import JobFileError, PlanError, Problem
from orchestrator.plan.cut import cuts_of, elastic_keys
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.feasible import Feasible
from orchestrator.sweep.objectives import known_metrics
from orchestrator.sweep.point import Point
from orchestrator.sweep.space import Param, Space
from orchestrator.sweep.supernet import whole_of
from orchestrator.wording import join, nearest, shown

_PROBES = 64


def is_supernet(sweep: Mapping[str, Any]) -> bool:
    """Say whether a sweep's plain data asks for a supernet."""
    search = sweep.get("search")
    return isinstance(search, Mapping) and search.get("use") == "supernet"


def supernet_problems(
    job: JobSpec | None, plan: Plan | None, sweep: Mapping[str, Any], space: Space, judged: Sequence[Feasible]
) -> Iterator[Problem]:
    """Yield everything that keeps a supernet from searching the space; `judged` are points of all of it."""
    elastic = elastic_keys(job.model.use) if job is not None else ()
    if job is not None and not elastic:
        message = f"model {job.model.use} does not say which of its nets are parts of which"
        yield Problem("sweep.search.use", message, "cnn, resnet and transformer do; or search with tpe", "no-parts")
        return
    bad = [found for param in space.params if job is not None if (found := _param(param, job, elastic)) is not None]
    yield from bad
    if not bad and judged:
        yield from _parts(judged)
    if job is not None and plan is not None:
        yield from _objectives(job, plan, sweep)
    yield from _counts(sweep)


def _param(param: Param, job: JobSpec, elastic: Sequence[str]) -> Problem | None:
    """Return why a dimension is none that nets with shared weights can differ in."""
    section, _, key = param.path.partition(".")
    place = join("sweep.space", param.path)
    if section != "model":
        message = "it is no part of the model, and all nets of a supernet are trained together, in one way"
        return Problem(place, message, "fix it in the job, or search it with tpe", "not-elastic")
    if not key or key == "use":
        message = "only nets of one model can share weights"
        return Problem(place, message, f"search keys of one model: {', '.join(elastic)}", "not-elastic")
    if key not in elastic:
        close = nearest(key, elastic)
        hint = f"did you mean `model.{close}`?" if close else f"fix it; {job.model.use} can vary {', '.join(elastic)}"
        return Problem(place, f"nets of {job.model.use} that share weights cannot differ in {key}", hint, "not-elastic")
    return None


def _parts(judged: Sequence[Feasible]) -> Iterator[Problem]:
    """Yield why some point is no part of the widest net of all."""
    models = [each.job.model for each in judged]
    try:
        whole = whole_of(models)
    except (PlanError, JobFileError) as error:
        yield Problem("sweep.space", error.message, error.hint or "take out what does not fit", "no-part")
        return
    for model in models:
        try:
            cuts_of(whole, model)
        except (PlanError, JobFileError) as error:
            message = f"{shown(dict(model.options))}: {error.message}"
            yield Problem("sweep.space", message, "take it out, or write what makes the nets alike", "no-part")
            return


def _objectives(job: JobSpec, plan: Plan, sweep: Mapping[str, Any]) -> Iterator[Problem]:
    """The ranking goes by what can be had without training."""
    given = sweep.get("objectives")
    names = list(given) if isinstance(given, Mapping) and given else [job.train.monitor.metric]
    known = known_metrics(job, plan)
    if not any(name in known for name in names):
        message = f"nets are ranked by a metric of the validation split, and the objectives are {', '.join(names)}"
        hint = f"add one of {', '.join(known)}" if known else "give the data a validation split"
        yield Problem("sweep.objectives", message, hint, "metric")


def _counts(sweep: Mapping[str, Any]) -> Iterator[Problem]:
    search, trials = sweep["search"], sweep.get("trials")
    control = search.get("control", 0)
    if isinstance(control, int) and isinstance(trials, int) and 2 * control > trials:
        message = f"nets trained alone take turns with those fine-tuned: {trials} trials are too few for {control}"
        yield Problem("sweep.search.control", message, f"set trials to at least {2 * control}", "contradiction")


def points_to_probe(space: Space, numbers: Random) -> list[Point]:
    """Return the whole space where it is small, else drawn points."""
    size = space.size(_PROBES + 1)
    if size is not None and size <= _PROBES:
        return list(space.grid())
    return [space.from_units([numbers.random() for _ in space.params]) for _ in range(_PROBES)]
