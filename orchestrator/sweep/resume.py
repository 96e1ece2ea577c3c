"""May a sweep go on with this job? Its trials must be comparable; space, budgets, searcher and scheduler may change (a
population's budgets only).

Asked twice: of the job file (`require_same_job`), and of the trials there are (`require_same_trials`): of every one's
own job, which other code may make another of, by other defaults, though the file and the point are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import JobFileError, Problem
from orchestrator.runs.paths import RunDir
from orchestrator.spec.digest import deciding_parts, differing_keys
from orchestrator.spec.job import JobSpec
from orchestrator.spec.problems import find_problems
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import objectives_of
from orchestrator.sweep.point import NoSuchPlaceError, apply_point
from orchestrator.sweep.population import breeds
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import trial_job


def _always_given(job: JobSpec) -> set[str]:
    """Return the paths that every point has a value for: only there the job's own value does not matter."""
    space = job.sweep.space if job.sweep is not None else {}
    return {path for path, given in space.items() if getattr(given, "when", None) is None}


def require_same_job(run: RunDir, job: JobSpec) -> None:
    """Refuse to go on with another job: its trials could not be compared with those there are. Raises JobFileError.

    Also when the job that they had cannot be read: whether it is the same is not known then.
    """
    before = _job_before(run)
    if before is None:
        return
    varies = _always_given(before)
    problems = [
        Problem(key, f"was {was!r} when the sweep began, is {now!r} now", f"set {key} back, or start anew", "resume")
        for key, was, now in differing_keys(before, job)
        if not any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in varies)
    ]
    problems += _compress_problems(before, job, varies)
    problems += _population_problems(before, job)
    old, new = objectives_of(before), objectives_of(job)
    if old != new:
        said = [", ".join(f"{each.name} {each.direction}" for each in some) for some in (old, new)]
        problems.append(
            Problem("sweep.objectives", f"were {said[0]}, are {said[1]} now", "start a new sweep", "resume")
        )
    _refuse(run, before, job, problems)


def _refuse(run: RunDir, before: JobSpec, job: JobSpec, problems: list[Problem]) -> None:
    if problems:
        raise JobFileError(
            f"{run.run_id} cannot go on with another job: its trials could not be compared; nothing was changed",
            hint=f"only {_may_change(before, job)} may change",
            problems=problems,
        )


def _job_before(run: RunDir) -> JobSpec | None:
    """Return the job that the sweep began with; None: it never came to write it down."""
    try:
        return JobSpec.model_validate_json(run.job.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise JobFileError(
            f"{run.job} cannot be read: {_first_line(error)}; whether the job is the one of the sweep's trials is not "
            "known, and nothing was changed",
            hint="a torn file: restore it from a copy; one of another version: go on with the version that wrote it; "
            "else start a new sweep",
        ) from error


def _first_line(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def _population_problems(before: JobSpec, job: JobSpec) -> Iterator[Problem]:
    """Yield a problem for what decides a population: its later generations begin from the earlier ones' checkpoints."""
    old, new = before.sweep, job.sweep
    if old is None or new is None or not _is_population(before, job):
        return
    for key in ("search", "space", "constraints", "seed"):
        if getattr(old, key) != getattr(new, key):
            message = "was another when the sweep began, and members of a population begin from one another"
            yield Problem(f"sweep.{key}", message, f"set sweep.{key} back, or start anew", "resume")


def _is_population(*jobs: JobSpec) -> bool:
    return any(each.sweep is not None and breeds(each.sweep.model_dump(mode="json")) for each in jobs)


def _may_change(before: JobSpec, job: JobSpec) -> str:
    if _is_population(before, job):
        return "budgets, start points, `export` and `keep`"
    return "the space, budgets, searcher, scheduler and start points"


def _compress_problems(before: JobSpec, job: JobSpec, varies: set[str]) -> Iterator[Problem]:
    """Yield a problem for every value of `compress` that changed and is not searched."""
    old, new = (dict(_leaves(each.compress.model_dump(mode="json"), "compress")) for each in (before, job))
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{path}.") for path in varies):
            message = f"was {old.get(key)!r} when the sweep began, is {new.get(key)!r} now"
            yield Problem(key, message, f"set {key} back, or start anew", "resume")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from _leaves(each, f"{path}.{key}")
    if not isinstance(value, dict | list):
        yield path, value


def trial_digest(job: JobSpec) -> str:
    """Return 16 hex digits that name what decides a trial's values: not where it runs, nor how it is laid out."""
    parts = deciding_parts(job) | {"compress": job.compress.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def require_same_trials(run: RunDir, data: Mapping[str, Any], ledger: Ledger) -> None:
    """Refuse to go on when a trial's point makes another job now than when it was begun, or finished trials have other
    repeats than those to come. Raises JobFileError.
    """
    _require_same_repeats(run, data, ledger)
    changed = [trial.name for trial in ledger.trials.values() if trial.digests and _is_another(data, trial)]
    if not changed:
        return
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise JobFileError(
        f"{run.run_id} cannot go on: the point of {changed[0]}{more} makes another job now than when it was begun; "
        "nothing was changed",
        hint=f"{run.trials / changed[0]}/job.json is the job it had; go on with the version of the code that made it, "
        "or start a new sweep",
    )


def _require_same_repeats(run: RunDir, data: Mapping[str, Any], ledger: Ledger) -> None:
    """Finished trials keep the values that their repeats were put together to."""
    finished = sum(trial.state == "finished" for trial in ledger.trials.values())
    before, job = (_job_before(run), find_problems(data)[0]) if finished else (None, None)
    if before is None or job is None or before.sweep is None or job.sweep is None:
        return
    keys = ["repeats"] if job.sweep.repeats == 1 else ["repeats", "aggregate"]  # one value is its mean and its worst
    have = "1 trial" if finished == 1 else f"{finished} trials"
    problems = []
    for key in keys:
        was, now = getattr(before.sweep, key), getattr(job.sweep, key)
        if was != now:
            message = f"was {was!r} when the sweep began and {have} finished, is {now!r} now"
            problems.append(Problem(f"sweep.{key}", message, f"set sweep.{key} back, or start a new sweep", "resume"))
    _refuse(run, before, job, problems)


def _is_another(data: Mapping[str, Any], trial: Trial) -> bool:
    try:
        job, problems, _ = find_problems(apply_point(data, trial.values_by_path))
    except NoSuchPlaceError:
        return True
    if job is None or problems:
        return True
    return any(trial_digest(trial_job(job, repeat)) != digest for repeat, digest in trial.digests.items())
