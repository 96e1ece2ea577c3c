"""`orchestrator plan`: what a job would do and need, in numbers, without starting anything."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.cli.check import load_and_plan
from orchestrator.cli.flags import Out, job_argument, overrides_argument, verb


@verb(example="orchestrator plan jobs/digits_cnn.yaml parallel.replicate=2")
@job_argument
@overrides_argument
def command(out: Out, job: str, overrides: tuple[str, ...]) -> None:
    """Show what the job file JOB would do and need on this machine; starts nothing.

    Figures that are predicted, not measured, say so. A job that does not fit is refused with what would. With -v the
    places of the ranks and the model's parameters are listed too, for which the model is built without memory.
    """
    from orchestrator.errors import OrchestratorError
    from orchestrator.plan.describe import describe, rank_map

    loaded, plan = load_and_plan(job, overrides)
    for note in loaded.notes:
        if note not in plan.notes:
            out.note(note)
    rows = describe(loaded.spec, plan)
    width = max(len(title) for title, _ in rows)
    lines = [f"{title:<{width}}  {text}" for title, text in rows]
    more: dict[str, Any] = {}
    if out.verbose:
        from orchestrator.train.parameters import in_lines, list_parameters

        lines += rank_map(plan)
        try:
            parameters = list_parameters(loaded.spec)
        except OrchestratorError as error:
            out.note(f"no list of parameters: {error.message}; {error.hint}")
        else:
            more["parameters"] = [asdict(each) for each in parameters]
            lines += in_lines(parameters)
    out.result({"job": job, "name": loaded.spec.name, "plan": asdict(plan), **more}, lines)
