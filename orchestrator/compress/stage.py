"""Compresses what a run or an export holds: called by `cluster.compress_stage` after training, and by the command line.

Best checkpoint -> steps of the job -> checked artifact -> compress.json, spool, artifacts. A second run replaces it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.base import Launch
from orchestrator.compress.manifest import read_page, write_page
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.report import as_json, metrics, table
from orchestrator.compress.runtimes.base import runtime_of
from orchestrator.errors import ExportError, JobFileError, NotAbleError, OrchestratorError, PlanError
from orchestrator.log import get_logger, setup_file_logging
from orchestrator.plan.layout import Layout
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, write_json
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import CompressSection, JobSpec, ParallelSection

if TYPE_CHECKING:
    from orchestrator.compress.recover import Recovered

_log = get_logger("compress")


def compress_run(run: RunDir, section: CompressSection | None = None, launch: Launch | None = None) -> Outcome:
    """Compress a run's best model by its job's steps (or those of `section`), record the outcome and return it.

    `launch` finds the ranks on which steps train; without it they are processes of this machine.
    Raises JobFileError when there are no steps, ExportError or CheckpointError when there is nothing to compress,
    PlanError when the steps do not fit.
    """
    trained = replace(open_trained(run, section), launch=launch)
    run.compress.unlink(missing_ok=True)  # it tells of files that are about to go
    outcome = compress(trained, run.compressed, _log.info)
    _draw(run, outcome)
    _record(run, trained, outcome)
    write_json(run.compress, as_json(outcome))
    return outcome


def compress_export(
    folder: Path, target: Path, section: CompressSection | None = None, launch: Launch | None = None
) -> Outcome:
    """Compress a model from a folder that an exporter wrote, by the steps of `section`; the files go to `target`.

    An export of before, which does not say by which optimiser it was trained, is not trained further unless that was
    the default: a step that would ends the compression. Raises ExportError when the folder is not whole or its weights
    cannot be read back.
    """
    from orchestrator import plugins
    from orchestrator.export.base import WeightReader
    from orchestrator.export.manifest import check_folder

    page = check_folder(folder)
    exporter = plugins.build("exporters", page.format, page.options)
    if not isinstance(exporter, WeightReader):
        raise ExportError(
            f"the weights of a model in format {page.format} cannot be read back by name",
            hint="give a folder of format program or safetensors",
        )
    job = JobSpec.model_validate(page.job)
    job = job.model_copy(update={"compress": section}) if section is not None else job
    trained = trained_from(job, exporter.read_weights(folder), page.checkpoint, 0)
    if "optim" in page.job or job_digest(job) == page.job_digest:
        return compress(replace(trained, launch=launch), target, _log.info)
    outcome = compress(replace(trained, launch=partial(_refuse_training, folder)), target, _log.info)
    if outcome.ok:
        _forget_optimiser(outcome.folder / "artifact", page.job_digest)
    return outcome


def _refuse_training(folder: Path, *asked: Any) -> Recovered:
    raise ExportError(
        f"{folder} was written by an older version, which did not keep the optimiser, and by the digest of its job "
        "that was not the default one: a step that trains would train with another than the run did",
        hint="export the run again (`orchestrator export RUN`), or compress the run (`orchestrator compress RUN`)",
    )


def _forget_optimiser(place: Path, digest: str) -> None:
    """Take an optimiser that nobody knows out of an artifact's page, and give the page the job's own digest."""
    page = read_page(place)
    job = {name: section for name, section in page.job.items() if name != "optim"}
    write_page(place, replace(page, job=job, job_digest=digest))


def open_trained(run: RunDir, section: CompressSection | None = None) -> Trained:
    """Return a run's best checkpoint as a model in memory."""
    from orchestrator.export.source import load_weights, read_job, read_result

    job = read_job(run)
    weights = load_weights(run, read_result(run))
    job = job.model_copy(update={"compress": section}) if section is not None else job
    return trained_from(job, weights.tensors, weights.checkpoint, weights.step)


def trained_from(job: JobSpec, tensors: Any, checkpoint: str, step: int) -> Trained:
    """Return weights by name as a trained model, with data and plan for one process. Raises PlanError."""
    import torch

    from orchestrator.export.restore import model_dtype, restore_model
    from orchestrator.export.score import final_split
    from orchestrator.export.weights import plain_copy
    from orchestrator.plan.available import Available
    from orchestrator.plan.build import build_plan
    from orchestrator.plan.compress import compress_problems
    from orchestrator.train.engine import load_dataset

    if not job.compress.steps:
        raise JobFileError(
            "the job has no compression steps", hint="name a job file that has: `orchestrator compress RUN JOB`"
        )
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    alone = job.model_copy(
        update={
            "parallel": ParallelSection(replicate=1),
            "cluster": job.cluster.model_copy(update={"address": None, "gpus_per_worker": 0.0, "backend": "gloo"}),
            "train": job.train.model_copy(update={"accumulate": 1}),
        }
    )
    data = load_dataset(job)
    plan = build_plan(alone, Available.local(), data.shape)
    model = plain_copy(restore_model(job.model, tensors))
    dtype = model_dtype(model)
    if dtype != "float32":
        raise PlanError(
            f"compression starts from float32 weights, this model has {dtype}", hint="train in fp32 or bf16"
        )
    layout = layout_of(job.parallel)
    problems = compress_problems(job, data.shape, layout, [], Available.local())
    if problems:
        raise PlanError("the steps do not fit the job or this machine", problems=problems)
    return Trained(
        alone,
        plan,
        data,
        model,
        checkpoint,
        step,
        final_split(data),
        dtype,
        layout,
        job.cluster,
        accumulate=job.train.accumulate,
    )


def layout_of(parallel: ParallelSection) -> Layout:
    """Return the layout that a job was trained under; `replicate: auto` that no plan has settled is one copy."""
    replicate = 1 if parallel.replicate == "auto" else parallel.replicate
    return Layout(
        parallel.pipeline, replicate, parallel.shard, parallel.context, parallel.tensor, expert=parallel.expert
    )


def _draw(run: RunDir, outcome: Outcome) -> None:
    from orchestrator.compress.figure import draw

    folder = run.artifacts / "compress"
    folder.mkdir(parents=True, exist_ok=True)
    draw(outcome, folder / "size_latency_accuracy.png")
    (folder / "report.txt").write_text("\n".join(table(outcome)) + "\n", encoding="utf-8")


def _record(run: RunDir, trained: Trained, outcome: Outcome) -> None:
    """Append to the spool what the tracking store shall know."""
    with SpoolWriter(run.spool / f"finish-compress-a{_attempt(run)}.jsonl") as spool:
        spool.metrics(trained.step, metrics(outcome))
        spool.record("artifact", path=str(run.artifacts / "compress"), artifact_path="compress")
        if outcome.ok:
            place = outcome.folder / "artifact"
            spool.record("artifact", path=str(place), artifact_path="compress/artifact")
            if not runtime_of(read_page(place).format).code:  # else nothing but the training code could serve it
                spool.record("model", **model_record(outcome, trained))


def model_record(outcome: Outcome, trained: Trained) -> dict[str, Any]:
    """Return the record by which the compressed model is registered beside its parent."""
    checked = outcome.checked
    shown = ", ".join(f"{name} {value:.4g}" for name, value in checked["metrics"].items())
    steps = " -> ".join(step.use for step in outcome.steps)
    return {
        "path": str(outcome.folder / "artifact"),
        "flavour": read_page(outcome.folder / "artifact").format,
        "alias": "compressed",
        "step": trained.step,
        "metrics": metrics(outcome),
        "description": f"{checked['size_ratio']:.1f} x smaller by {steps}: {shown} on {checked['samples']} "
        f"{checked['split']} samples, measured from the file, from {trained.checkpoint}.",
        "tags": {
            "checkpoint": trained.checkpoint,
            "compressed_by": steps,
            "size_ratio": f"{checked['size_ratio']:.3f}",
        },
    }


def _attempt(run: RunDir) -> int:
    try:
        return max(1, read_record(run).attempt)
    except NotAbleError:
        return 1


def main(arguments: Sequence[str], launch: Launch | None = None) -> int:
    """Compress the model of the run folder given; the outcome is in compress.json. Return the exit code."""
    run = RunDir(Path(arguments[0]).resolve())
    setup_file_logging(run.logs / "compress.log")
    logging.captureWarnings(True)
    try:
        outcome = compress_run(run, launch=launch)
    except OrchestratorError as error:
        write_json(run.compress, {"status": "failed", "error": error.message, "hint": error.hint, "metrics": {}})
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0 if outcome.ok else 1
