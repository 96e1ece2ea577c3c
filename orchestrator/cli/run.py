"""`orchestrator run`: train from a job file, with progress on stderr and the outcome on stdout."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, job_argument, overrides_argument, verb

if TYPE_CHECKING:
    from orchestrator.cluster.result import RunResult


@verb(example="orchestrator run jobs/digits_cnn.yaml train.epochs=2")
@job_argument
@overrides_argument
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN]",
    help="Continue a run of this job from its newest checkpoint (default: the latest).",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--profile", is_flag=True, help="Record a trace of some steps (open it in Perfetto).")
def command(out: Out, job: str, overrides: tuple[str, ...], resume: str | None, dry_run: bool, profile: bool) -> int:
    """Train the job in the file JOB, and export, evaluate and register the model.

    KEY=VALUE replaces a value of the file. Ctrl-C finishes the step, saves and leaves; `--resume` continues.
    """
    # Said before anything heavy is imported: a command that is silent for a second feels broken.
    out.say(f"{click.style('job      ', bold=True)} {' '.join([job, *overrides])}", err=True)
    sys.stderr.flush()
    if resume is not None and "=" in resume:
        resume, overrides = "latest", (resume, *overrides)
    if profile:
        overrides = (*overrides, "train.profile=true")
    if dry_run:
        _dry_run(out, job, overrides)
        return 0
    result = _train(out, job, overrides, resume)
    lines = _closing_lines(result, shlex.join([job, *overrides]))
    out.result(result.as_dict() | {"ok": result.state == "finished"}, lines)
    return result.exit_code


def _dry_run(out: Out, job: str, overrides: tuple[str, ...]) -> None:
    from dataclasses import asdict

    from orchestrator.cli.check import load_and_plan
    from orchestrator.plan.describe import describe

    loaded, plan = load_and_plan(job, overrides)
    rows = describe(loaded.spec, plan)
    lines = [f"{title:<9} {text}" for title, text in rows]
    out.result({"job": job, "name": loaded.spec.name, "plan": asdict(plan)}, lines)


def _train(out: Out, job: str, overrides: tuple[str, ...], resume: str | None) -> RunResult:
    from orchestrator.cli.check import load_and_plan
    from orchestrator.cli.progress import Progress
    from orchestrator.plan.describe import describe

    loaded, plan = load_and_plan(job, overrides)
    alone = loaded.spec.model_copy(update={"sweep": None})
    progress = Progress(out, plan, loaded.spec.train.monitor.metric)
    for note in loaded.notes:
        if note not in plan.notes:
            progress.tell("note", note)
    if loaded.spec.sweep is not None:
        progress.tell(
            "note", f"this trains the job as it stands; `orchestrator sweep {job}` searches its sweep section"
        )
    for title, text in describe(loaded.spec, plan):
        if out.verbose or title in ("layout", "length", "note"):
            progress.tell(title, text)
    from orchestrator.cli.render import INTERRUPTED, show_error
    from orchestrator.cluster.run import run_job
    from orchestrator.errors import OrchestratorError

    said = " ".join(["orchestrator run", job, *overrides])
    try:
        return run_job(alone, plan, resume=resume, on_event=progress, command=said)
    except KeyboardInterrupt:
        # The second Ctrl-C: everything is killed and told by now. Ray's own exit handlers would wait for the dead.
        progress.clear()
        show_error(OrchestratorError("interrupted"), out.json, kind="Interrupted", code=INTERRUPTED)
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    finally:
        progress.clear()


def _closing_lines(result: RunResult, said: str) -> list[str]:
    """Return what the user wants to know at the end, and what to type next."""
    rows = [(result.state, f"{result.run_id}  {result.seconds:.1f} s  {result.verdict}")]
    rows += [(name, f"{value:.4f}") for name, value in sorted(result.metrics.items()) if name.startswith("test/")]
    if result.model_version:
        rows.append(("model", f"{result.model_version.get('name')} version {result.model_version.get('version')}"))
    if result.compressed_version:
        made = result.compressed_version
        rows.append(("compressed", f"{made.get('name')} version {made.get('version')}"))
    rows.append(("where", str(result.path)))
    if result.mlflow.get("url"):
        rows.append(("mlflow", result.mlflow["url"]))
    rows += [("note", note) for note in result.notes]
    if result.state == "finished":
        rows.append(("next", f"orchestrator ui  ·  orchestrator eval {result.run_id}"))
    else:
        rows.append(("go on", f"orchestrator run {said} --resume {result.run_id}"))
    lines = [f"{click.style(f'{title:<13}', bold=True)} {text}" for title, text in rows]
    return [*result.compression, *([""] if result.compression else []), *lines]
