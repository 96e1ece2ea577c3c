"""`orchestrator check`: what is wrong with a job, without starting anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.flags import Out, job_argument, overrides_argument, verb

if TYPE_CHECKING:
    from orchestrator.errors import Problem
    from orchestrator.plan.plan import Plan
    from orchestrator.spec.load import LoadedJob


@verb(example="orchestrator check jobs/digits_cnn.yaml train.steps=50 'model.channels=[16, 32]'")
@job_argument
@overrides_argument
@click.option("--resolved", is_flag=True, help="Print the job with extends, overrides and every default filled in.")
def command(out: Out, job: str, overrides: tuple[str, ...], resolved: bool) -> None:
    """Say what is wrong with the job file JOB; starts nothing.

    Problems are named with line and repair, all of one kind at once: first what cannot be read, then keys and values,
    then what does not fit the data, the layout or this machine; exit code 2. KEY=VALUE replaces a value of the file,
    the key written with dots. Of your own code a module with a `Config` is imported, and a sweep's scheduler; any other
    class (`use: my_nets:Net`) is looked for only, and its options are checked in the worker.
    """
    from orchestrator.spec.resolve import resolved_data, resolved_text

    loaded, plan = load_and_plan(job, overrides)
    for note in dict.fromkeys((*loaded.notes, *plan.notes)):
        out.note(note)
    payload = {
        "job": job,
        "name": loaded.spec.name,
        "files": [str(path) for path in loaded.files],
        "notes": [*loaded.notes, *plan.notes],
        "resolved": resolved_data(loaded.spec),
    }
    fine = f"{job}: ok  {plan.layout.describe()}, {plan.batch.total_steps:,} steps"
    out.result(payload, [resolved_text(loaded.spec).rstrip()] if resolved else [] if out.quiet else [fine])


def load_and_plan(job: str, overrides: tuple[str, ...]) -> tuple[LoadedJob, Plan]:
    """Load a job and plan it on this machine. Raises JobFileError or PlanError whose problems have places."""
    from orchestrator.errors import PlanError
    from orchestrator.plan.available import Available
    from orchestrator.plan.build import build_plan
    from orchestrator.spec.load import load_job

    loaded = load_job(job, overrides, also=sweep_problems)
    here = Available.local()
    try:
        available = here if loaded.spec.cluster.address is None else Available.unknown()
        return loaded, build_plan(loaded.spec, available, here=here)
    except PlanError as error:
        raise loaded.places.attach(
            PlanError(f"{job}: {error.message}", hint=error.hint, problems=error.problems)
        ) from None


def sweep_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Only a job with a sweep pays for the import."""
    if data.get("sweep") is None:
        return []
    from orchestrator.sweep.check import find_sweep_problems

    return find_sweep_problems(data)
