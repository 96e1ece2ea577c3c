"""`orchestrator sweep`: search a job's space, with a live table on stderr and the front on stdout."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, job_argument, overrides_argument, verb

if TYPE_CHECKING:
    from orchestrator.spec.load import LoadedJob
    from orchestrator.sweep.result import SweepResult


@verb(example="orchestrator sweep jobs/sweep_digits.yaml sweep.trials=8")
@job_argument
@overrides_argument
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[SWEEP]",
    help="Go on with a sweep of this job (default: the latest); its space, budgets and searcher may have changed.",
)
@click.option("--dry-run", is_flag=True, help="Show the space and some points with their plans, and stop.")
def command(out: Out, job: str, overrides: tuple[str, ...], resume: str | None, dry_run: bool) -> int:
    """Search the space that the file JOB describes under `sweep:`, and export the best models.

    KEY=VALUE replaces a value of the file. Ctrl-C lets running trials save and leaves; `--resume` continues. Exit code
    3: some trials failed.
    """
    out.say(f"{click.style('sweep    ', bold=True)} {' '.join([job, *overrides])}", err=True)
    sys.stderr.flush()
    if resume is not None and "=" in resume:
        resume, overrides = "latest", (resume, *overrides)
    loaded = _load(job, overrides)
    if dry_run:
        from orchestrator.cli.sweep_preview import preview

        return preview(out, job, loaded)
    result = _search(out, job, overrides, loaded, resume)
    lines = _closing_lines(result, shlex.join([job, *overrides]))
    out.result(result.as_dict() | {"ok": result.exit_code == 0}, lines)
    return result.exit_code


def _load(job: str, overrides: tuple[str, ...]) -> LoadedJob:
    from orchestrator.cli.check import sweep_problems
    from orchestrator.errors import JobFileError
    from orchestrator.spec.load import load_job

    loaded = load_job(job, overrides, also=sweep_problems)
    if loaded.spec.sweep is None:
        raise JobFileError(
            f"{job} has no sweep section",
            hint=f"add `sweep: {{space: ...}}` (docs/sweeps.md), or `orchestrator run {job}`",
        )
    return loaded


def _search(out: Out, job: str, overrides: tuple[str, ...], loaded: LoadedJob, resume: str | None) -> SweepResult:
    from orchestrator.cli.render import INTERRUPTED, show_error
    from orchestrator.cli.sweep_table import SweepProgress
    from orchestrator.errors import OrchestratorError
    from orchestrator.plan.available import Available
    from orchestrator.sweep.check import build_space
    from orchestrator.sweep.feasible import Limits
    from orchestrator.sweep.generations import trials_of
    from orchestrator.sweep.objectives import objectives_of
    from orchestrator.sweep.run import run_sweep

    total = trials_of(loaded.data, loaded.spec, build_space(loaded.spec), Limits(Available.unknown()))
    progress = SweepProgress(out, objectives_of(loaded.spec), total)
    for note in loaded.notes:
        progress.tell("note", note)
    said = " ".join(["orchestrator sweep", job, *overrides])
    try:
        return run_sweep(loaded.spec, loaded.data, resume=resume, on_event=progress, command=said)
    except KeyboardInterrupt:
        # The second Ctrl-C: everything is killed and told by now. Ray's own exit handlers would wait for the dead.
        progress.close()
        show_error(OrchestratorError("interrupted"), out.json, kind="Interrupted", code=INTERRUPTED)
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    finally:
        progress.close()


def _closing_lines(result: SweepResult, said: str) -> list[str]:
    """Return the front, what it cost, and what to type next."""
    from orchestrator.sweep.summary import note_rows

    rows = [(result.state, f"{result.run_id}  {result.verdict.partition(': ')[2]}"), *note_rows(result.summary)]
    if result.model_version:
        rows.append(("model", f"{result.model_version.get('name')} version {result.model_version.get('version')}"))
    failed = [trial for trial in result.summary.trials.values() if trial.state == "failed"]
    rows += [(f"failed {trial.name}", trial.reason) for trial in failed[:5]]
    rows.append(("where", str(result.path)))
    if result.mlflow.get("url"):
        rows.append(("mlflow", result.mlflow["url"]))
    rows += [(name, result.mlflow[name]) for name in ("table", "charts") if name in result.mlflow]
    rows += [("note", note) for note in result.notes]
    best = result.summary.best
    if result.state == "stopped":
        rows.append(("go on", f"orchestrator sweep {said} --resume {result.run_id}"))
    elif best is not None:
        alone = best.birth is None or best.birth.parent is None  # else its job file does not train what it is
        again = f"  ·  orchestrator run {result.path}/trials/{best.name}/job.yaml" if alone else ""
        rows.append(("next", f"orchestrator ui{again}"))
    return [f"{click.style(f'{title:<13}', bold=True)} {text}" for title, text in rows]
