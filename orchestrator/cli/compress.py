"""`orchestrator compress`: makes a model that is already trained smaller, and verifies the file that comes out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, verb

if TYPE_CHECKING:
    from orchestrator.compress.base import Launch
    from orchestrator.compress.pipeline import Outcome
    from orchestrator.spec.job import CompressSection


@verb(example="orchestrator compress digits-cnn-1 jobs/compress_digits.yaml")
@click.argument("target")
@click.argument("job", required=False)
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
@click.option(
    "--out",
    "out_folder",
    default=None,
    help="Where the files of an exported model's compression go; absent: TARGET-compressed.",
)
@click.option("--here", is_flag=True, help="Train between the steps on this machine, not on the job's cluster.")
def command(out: Out, target: str, job: str | None, storage: str, out_folder: str | None, here: bool) -> int:
    """Compress TARGET, a run's id or a folder that `export` made, by the steps of its job or of the file JOB.

    A run's outcome goes into its folder and its MLflow run. Ends with 1 when the file does not hold what it should.
    """
    from orchestrator.compress.report import as_json, table

    section = _section(job)
    with _launcher(here) as launch:
        if _is_export(target):
            outcome = _of_folder(Path(target), section, out_folder, launch)
        else:
            outcome = _of_run(target, section, storage, launch)
    out.result({"target": target, **as_json(outcome), "ok": outcome.ok}, [*table(outcome), f"where  {outcome.folder}"])
    return 0 if outcome.ok else 1


def _section(job: str | None) -> CompressSection | None:
    if job is None:
        return None
    from orchestrator.spec.load import load_job

    return load_job(job).spec.compress


def _launcher(here: bool) -> AbstractContextManager[Launch | None]:
    from orchestrator.cluster.launch import Launcher

    return nullcontext() if here else Launcher()


def _is_export(target: str) -> bool:
    from orchestrator.export.manifest import MANIFEST_FILE

    return (Path(target) / MANIFEST_FILE).is_file()


def _of_run(target: str, section: CompressSection | None, storage: str, launch: Launch | None) -> Outcome:
    from orchestrator.compress.stage import compress_run
    from orchestrator.runs.catalog import find_run
    from orchestrator.tracking.handle import sync
    from orchestrator.tracking.request import read_request

    run = find_run(Path(storage), target)
    outcome = compress_run(run, section, launch)
    if read_request(run) is not None:
        sync(run)
    return outcome


def _of_folder(folder: Path, section: CompressSection | None, out_folder: str | None, launch: Launch | None) -> Outcome:
    from orchestrator.compress.stage import compress_export

    return compress_export(folder, Path(out_folder or f"{folder}-compressed"), section, launch)
