"""`orchestrator verify`: proves on this machine that a job's layout computes what one process computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, verb

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec
    from orchestrator.verify.run import Report


@verb(example="orchestrator verify jobs/digits_cnn.yaml --layouts all --ranks 4")
@click.argument("words", metavar="[JOB]... [KEY=VALUE]...", nargs=-1)
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1, 1000), help="Training steps to compare.")
@click.option(
    "--layouts",
    type=click.Choice(["own", "all"]),
    default="own",
    show_default=True,
    help="The job's own, or all that fit.",
)
@click.option("--ranks", default="4", show_default=True, help="Most ranks for --layouts all; for --matrix a list: 2,4.")
@click.option("--matrix", is_flag=True, help="Every built-in model under every layout and schedule, in float64.")
@click.option("--models", default="", help="For --matrix: only these models, with commas between.")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    help="Measure the pipeline of one JOB instead: .svg or .png for a picture, .json for ui.perfetto.dev.",
)
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="For --matrix: keep every cell here as it is measured; cells found here are not run again.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="For --matrix: also write the table here.")
def command(
    out: Out,
    words: tuple[str, ...],
    steps: int,
    layouts: str,
    ranks: str,
    matrix: bool,
    models: str,
    timeline: Path | None,
    cells: Path | None,
    output: Path | None,
) -> int:
    """Train each JOB for a few steps under its layout and on one process; compare every tensor.

    Losses, every parameter's gradient, the gradient norm before and after clipping, updated weights and buffers are
    compared, in float64 (the gate: 1e-9) and in the job's own precision. KEY=VALUE replaces a value in every JOB. Ends
    with 1 when any group disagrees, naming the first step and parameter at fault.
    """
    jobs, overrides = split_words(words)
    if matrix:
        from orchestrator.cli.verify_matrix import show_matrix

        return show_matrix(out, numbers(ranks), models, steps, output, cells)
    for flag, given in (("--cells", cells), ("--output", output), ("--models", models)):
        if given:
            raise click.UsageError(f"{flag} goes with --matrix")
    if not jobs:
        raise click.UsageError("which job? give one job file or several, or --matrix")
    if timeline is not None:
        from orchestrator.cli.verify_timeline import show_timeline

        return show_timeline(out, jobs, overrides, timeline)
    max_ranks = max(numbers(ranks)) if layouts == "all" else None
    reports = {
        job: _verify(out, job, spec, steps, max_ranks) for job, spec in _load(jobs, overrides, max_ranks).items()
    }
    return _conclude(out, reports)


def split_words(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return (job files, overrides): an override has a `=` in it and is no file."""
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    return [word for word in words if word not in overrides], overrides


def numbers(text: str) -> list[int]:
    """Read `2,4,8`. Raises UsageError for anything but numbers of ranks from 2 to 64."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 2 <= int(part) <= 64 for part in parts):
        raise click.UsageError(f"--ranks takes numbers from 2 to 64 with commas between, not '{text}'")
    return [int(part) for part in parts]


def _load(jobs: list[str], overrides: list[str], max_ranks: int | None) -> dict[str, JobSpec]:
    """Load and plan every job before any runs."""
    from orchestrator.errors import PlanError
    from orchestrator.spec.load import load_job
    from orchestrator.verify.layouts import own_layout

    found: dict[str, JobSpec] = {}
    for job in jobs:
        loaded = load_job(job, overrides)
        found[job] = loaded.spec
        if max_ranks is not None:
            continue
        try:
            own_layout(loaded.spec)
        except PlanError as error:
            raise loaded.places.attach(
                PlanError(f"{job}: {error.message}", hint=error.hint, problems=error.problems)
            ) from None
    return found


def _verify(out: Out, job: str, spec: JobSpec, steps: int, max_ranks: int | None) -> Report:
    from orchestrator.verify.run import verify_job
    from orchestrator.verify.table import lines_of_one, table

    out.say(click.style(job, bold=True))
    whole = max_ranks is None
    report = verify_job(
        spec,
        num_steps=steps,
        max_ranks=max_ranks,
        on_progress=lambda text: out.say(f"  ... {text}", err=True),
        on_result=lambda found: out.say(
            f"  ... {'ok' if found.agrees else 'FAIL'} {found.layout} {found.precision}", err=True
        ),
    )
    for line in table(report.comparisons) if not whole else [x for c in report.comparisons for x in lines_of_one(c)]:
        out.say(f"  {line}")
    for note in report.notes:
        out.note(note)
    return report


def _conclude(out: Out, reports: dict[str, Report]) -> int:
    failed = [job for job, report in reports.items() if not report.agrees]
    count = sum(len(report.comparisons) for report in reports.values())
    agree = f"all {count} comparisons agree: the layout computes what one process computes"
    verdict = f"the layout changes the result: {', '.join(failed)}" if failed else agree
    found = [
        {
            "job": job,
            "agrees": report.agrees,
            "notes": list(report.notes),
            "comparisons": [comparison.as_dict() for comparison in report.comparisons],
        }
        for job, report in reports.items()
    ]
    out.result({"ok": not failed, "agrees": not failed, "jobs": found}, [verdict])
    return 1 if failed else 0
