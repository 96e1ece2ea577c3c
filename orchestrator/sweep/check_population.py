"""Can this job be trained as a population, whose values change in mid-training? Called by `sweep.check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator import plugins
from orchestrator.errors import JobFileError, Problem
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.generations import ends_of
from orchestrator.sweep.objectives import known_metrics
from orchestrator.sweep.population import Breeder, breeds
from orchestrator.sweep.search import SearchTask
from orchestrator.sweep.space import Param, Space
from orchestrator.wording import join

_FIXED = {
    "optim.use": "another optimiser keeps another state",
    "optim.groups": "other groups keep their state in another order",
    "optim": "another optimiser keeps another state",
    "train.batch_size": "the position in the data is counted in batches",
    "train.seed": "sample order and dropout are functions of it",
    "train.steps": "its length decides when generations end",
    "train.epochs": "its length decides when generations end",
    "train.precision": "the checkpoint holds weights of one precision",
    "train.eval_every_steps": "evaluations decide when generations end",
    "model": "the checkpoint's weights are those of one model",
    "data": "training would go on with other samples",
    "parallel": "training would go on in another layout",
    "compress": "it is applied to trained models, and members are compared on their way",
}
_FREE = ("optim", "train.loss", "train.max_skipped_steps")
_MAY = "keys of optim, train.loss, train.max_skipped_steps and dropout rates of the model may change in mid-training"


def population_problems(
    sweep: Mapping[str, Any], job: JobSpec | None, plan: Plan | None, space: Space
) -> Iterator[Problem]:
    """Yield what is wrong with a sweep whose searcher breeds; nothing for other searchers.

    What the form of its options forbids is told elsewhere.
    """
    breeder = _breeder_of(sweep, space)
    if breeder is None:
        return
    name = sweep["search"]["use"]
    for param in space.params:
        why = _why_fixed(param)
        if why:
            yield Problem(
                join("sweep.space", param.path), f"may not change in mid-training, as {name} does: {why}", _MAY
            )
    yield from _section_problems(sweep, name, breeder.population, space)
    if job is not None and plan is not None:
        yield from _state_problems(job, space)
        yield from _job_problems(sweep, job, name)
        yield from _objective_problems(sweep, job, plan, name)
        yield from _length_problems(sweep, plan, breeder)


def _breeder_of(sweep: Mapping[str, Any], space: Space) -> Breeder | None:
    if not breeds(sweep):
        return None
    options = {key: value for key, value in sweep["search"].items() if key != "use"}
    try:
        found: Breeder = plugins.build("searchers", sweep["search"]["use"], options, SearchTask(space, ()))
    except JobFileError:
        return None
    return found


def _why_fixed(param: Param) -> str:
    """Return why a parameter may not change in mid-training; "" when it may."""
    path = param.path
    if path.startswith("model.") and "drop" in path.rpartition(".")[2]:
        return ""
    if path.startswith("optim.groups.") and path.count(".") > 2 and not path.endswith(".match"):
        return ""
    above = [key for key in _FIXED if path == key or (key != "optim" and path.startswith(f"{key}."))]
    if above:
        return _FIXED[above[0]]
    if any(path == key or path.startswith(f"{key}.") for key in _FREE):
        return ""
    return "it is not known to leave the checkpoint as it is"


def _section_problems(sweep: Mapping[str, Any], name: str, population: int, space: Space) -> Iterator[Problem]:
    scheduler, start, size = sweep.get("scheduler"), sweep.get("start"), space.size(population)
    use = scheduler.get("use") if isinstance(scheduler, Mapping) else None
    if use not in (None, "fifo"):
        message = f"{name} decides itself who goes on, and all trials of a generation end together"
        yield Problem("sweep.scheduler", message, f"leave {use} out", "contradiction")
    if isinstance(sweep.get("repeats"), int) and sweep["repeats"] > 1:
        message = f"{name} compares single trainings, and every point has {sweep['repeats']} repeats"
        yield Problem("sweep.repeats", message, "set repeats: 1, and a larger population", "contradiction")
    if isinstance(start, list) and len(start) > population:
        message = f"{len(start)} start points, but the first generation has {population} trials"
        yield Problem("sweep.start", message, "raise sweep.search.population, or leave some out", "contradiction")
    if size is not None and size < population:
        message = f"the space has {size} points, and the first generation {population} trials with different values"
        yield Problem("sweep.space", message, "write ranges in place of choices, or lower population", "contradiction")


def _job_problems(sweep: Mapping[str, Any], job: JobSpec, name: str) -> Iterator[Problem]:
    if job.train.monitor.patience is not None:
        message = f"it ends a training early, and under {name} all trials of a generation end together"
        yield Problem("train.monitor.patience", message, "leave it out", "contradiction")
    if job.compress.steps:
        message = f"under {name} every trial of every generation would be compressed"
        hint = "leave it out, and `orchestrator compress` the best trial afterwards"
        yield Problem("compress.steps", message, hint, "contradiction")


def _objective_problems(sweep: Mapping[str, Any], job: JobSpec, plan: Plan, name: str) -> Iterator[Problem]:
    given = sweep.get("objectives")
    names = list(given) if isinstance(given, Mapping) and given else [job.train.monitor.metric]
    known = known_metrics(job, plan)
    if len(names) > 1:
        message = f"{name} ranks a generation by one number, and of several objectives there are many rankings"
        yield Problem("sweep.objectives", message, f"keep one of {', '.join(names)}", "metric")
    elif names[0] not in known:
        hint = f"take one of {', '.join(known)}" if known else "the job has no validation split to measure on"
        yield Problem("sweep.objectives", f"no evaluation reports {names[0]}, by which {name} ranks", hint, "metric")


def _length_problems(sweep: Mapping[str, Any], plan: Plan, breeder: Breeder) -> Iterator[Problem]:
    count, trials = len(ends_of(plan.batch, breeder.interval)), sweep.get("trials")
    if count < 2:
        message = f"the training is over within one generation of {breeder.interval} evaluations: nobody is replaced"
        hint = "lower interval, or train.eval_every_steps, or train longer"
        yield Problem("sweep.search.interval", message, hint, "contradiction")
    most = breeder.population * count
    if isinstance(trials, int) and (trials % breeder.population or trials > most):
        message = f"{trials} trials are not whole generations: {count} of {breeder.population} trials make {most}"
        hint = f"leave it out for all of them, or write a multiple of {breeder.population} up to {most}"
        yield Problem("sweep.trials", message, hint, "contradiction")


def _state_problems(job: JobSpec, space: Space) -> Iterator[Problem]:
    """An option that makes the optimiser keep more or less would not find its state in the parent's checkpoint."""
    config = plugins.light_config("optimizers", job.optim.use)
    plugin: Any = plugins.load("optimizers", job.optim.use) if config is not None else None
    if config is None or not hasattr(plugin, "state_slots"):
        return
    for param in space.params:
        beside, key = _options_beside(job, param.path)
        slots: dict[float, Any] = {}
        for _, value in param.probes() if key else ():
            options = {**beside, key: value}
            if not plugins.config_problems(config, options):
                slots.setdefault(plugin.state_slots(plugins.build_config(config, options)), value)
        if len(slots) > 1:
            few, many = (slots[each] for each in (min(slots), max(slots)))
            message = f"with {few!r} the optimiser keeps less than with {many!r}, which a checkpoint of it would lack"
            yield Problem(join("sweep.space", param.path), message, f"leave {few!r} out", "contradiction")


def _options_beside(job: JobSpec, path: str) -> tuple[dict[str, Any], str]:
    """Return the options that hold where an option of the optimiser or of one of its groups does, and its key; "" for
    other paths."""
    options = dict(job.optim.options)
    match path.split("."):
        case ["optim", key]:
            return options, key
        case ["optim", "groups", index, key] if index.isdigit() and int(index) < len(job.optim.groups):
            return options | dict(job.optim.groups[int(index)].options), key
    return {}, ""
