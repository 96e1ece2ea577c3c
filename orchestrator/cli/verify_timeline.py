"""`orchestrator verify JOB --timeline FILE`: what each rank of a pipeline did in one step, measured."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.flags import Out


def show_timeline(out: Out, jobs: list[str], overrides: list[str], path: Path) -> int:
    """Measure the pipeline of one job and write the picture or the trace."""
    from orchestrator.plan.available import Available
    from orchestrator.spec.load import load_job
    from orchestrator.verify.timeline import measure_pipeline, save

    if len(jobs) != 1:
        raise click.UsageError(f"--timeline measures one job, not {len(jobs)}")
    if path.suffix not in (".svg", ".png", ".json"):
        raise click.UsageError(f"--timeline takes a file ending in .svg, .png or .json, not '{path}'")
    measured = measure_pipeline(load_job(jobs[0], overrides).spec)
    save(measured, path)
    cores = Available.local().num_cpus
    if measured.num_ranks > cores:
        out.note(
            f"{measured.num_ranks} ranks share {cores:g} cores here: they wait for a core as well as for one another, "
            "so the bubble is that of this machine, not of the schedule"
        )
    bubble = f"{measured.measured_bubble:.1%} of the ranks' time measured, {measured.ideal_bubble:.1%} in theory"
    line = f"{measured.stages.schedule}: step {measured.step_s * 1e3:.1f} ms, bubble {bubble}; wrote {path}"
    out.result(
        {
            "job": jobs[0],
            "schedule": measured.stages.schedule,
            "microbatches": measured.stages.microbatches,
            "step_s": measured.step_s,
            "measured_bubble": measured.measured_bubble,
            "ideal_bubble": measured.ideal_bubble,
            "ranks": measured.num_ranks,
            "file": str(path),
        },
        [line],
    )
    return 0
