"""May a sweep go on with this job? Its trials must be comparable; space, budgets, searcher and scheduler may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.errors import JobFileError, Problem
from orchestrator.runs.paths import RunDir
from orchestrator.spec.digest import differing_keys
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.objectives import objectives_of


def _always_given(job: JobSpec) -> set[str]:
    """Return the paths that every point has a value for: only there the job's own value does not matter."""
    space = job.sweep.space if job.sweep is not None else {}
    return {path for path, given in space.items() if getattr(given, "when", None) is None}


def require_same_job(run: RunDir, job: JobSpec) -> None:
    """Refuse to go on with another job: its trials could not be compared with those there are. Raises JobFileError."""
    try:
        before = JobSpec.model_validate_json(run.job.read_bytes())
    except OSError:
        return
    varies = _always_given(before)
    problems = [
        Problem(key, f"was {was!r} when the sweep began, is {now!r} now", f"set {key} back, or start anew", "resume")
        for key, was, now in differing_keys(before, job)
        if not any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in varies)
    ]
    problems += _compress_problems(before, job, varies)
    old, new = objectives_of(before), objectives_of(job)
    if old != new:
        said = [", ".join(f"{each.name} {each.direction}" for each in some) for some in (old, new)]
        problems.append(
            Problem("sweep.objectives", f"were {said[0]}, are {said[1]} now", "start a new sweep", "resume")
        )
    if problems:
        raise JobFileError(
            f"{run.run_id} cannot go on with another job: its trials could not be compared; nothing was changed",
            hint="only the space, budgets, searcher, scheduler and start points may change",
            problems=problems,
        )


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
