"""The finish stage: best checkpoint -> verified exports -> evaluation of the exported program -> spool, finish.json.

Run by the driver as `python -m orchestrator.export.finish RUN_DIR` after training; a second run gives the same.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.export.base import CHECK_BATCHES
from orchestrator.export.package import ExportBatch, ExportOutcome, Source, open_export
from orchestrator.export.report import FinishResult, record_result, write_artifacts, write_failure, write_result
from orchestrator.export.score import Score, final_split, held_out_inputs, score
from orchestrator.export.source import TrainedWeights, load_weights, read_job, read_result
from orchestrator.export.verify import Verification
from orchestrator.log import setup_file_logging
from orchestrator.runs.parent import die_with_parent
from orchestrator.runs.paths import RunDir
from orchestrator.spec.base import Use
from orchestrator.spec.digest import job_digest
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import nn

    from orchestrator.data.dataset import Dataset

_SERVED = "program"  # the format that MLflow is given
_FALLBACK = "safetensors"  # needs no tracing, so it can be had of every model


class _Stopwatch:
    """Seconds per part."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Book the time since the last call under `part`."""
        now = time.perf_counter()
        self.seconds[part] = round(now - self._last, 3)
        self.seconds["total"] = round(now - self._begun, 3)
        self._last = now


@dataclass(frozen=True)
class _Trained:
    """A trained model in memory and all that exporting and evaluating it take."""

    run: RunDir
    job: JobSpec
    weights: TrainedWeights
    data: Dataset
    model: nn.Module
    digest: str
    split: str
    dtype: str

    def batch(self, warm: Verification) -> ExportBatch:
        """Return what writes and verifies its exports."""
        source = Source(self.job, self.weights.checkpoint, self.digest, self.data.transform)
        held_out = held_out_inputs(self.data, self.split, sum(CHECK_BATCHES), self.dtype)
        return ExportBatch(self.model, held_out, source, self.run.exports, warm)

    def score_first(self, folders: Mapping[str, Path]) -> tuple[str, Score] | None:
        """Evaluate the first of these exports and say which it was; None when there is none."""
        for name, folder in folders.items():
            model, _ = open_export(folder, verified=False)
            return name, score(model, self.job, self.data, self.split, self.dtype)
        return None


def finish(run: RunDir) -> FinishResult:
    """Export the run's best model in the job's formats, verify, evaluate, record.

    A format that fails is listed in the result and does not stop the others. Raises ExportError or CheckpointError when
    there is nothing to export or nothing that can be evaluated.
    """
    watch = _Stopwatch()
    with closing(Verification(warm=True)) as warm:  # its imports overlap ours
        trained = _open_trained(run, watch)
        found = _export_and_score(trained, trained.batch(warm), watch)
    write_artifacts(run, found)
    record_result(run, found)
    watch.lap("record")
    write_result(run, found)
    return found


def export_run(run: RunDir, uses: Sequence[Use]) -> tuple[ExportOutcome, ...]:
    """Export a finished run's best model to these formats only (`orchestrator export`); nothing is evaluated."""
    with closing(Verification(warm=True)) as warm, closing(_open_trained(run, _Stopwatch()).batch(warm)) as batch:
        batch.write(uses)
        return batch.collect()


def _open_trained(run: RunDir, watch: _Stopwatch) -> _Trained:
    import torch

    from orchestrator.export.restore import model_dtype, restore_model
    from orchestrator.export.weights import digest_weights
    from orchestrator.train.engine import load_dataset

    job, result = read_job(run), read_result(run)
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    watch.lap("imports")
    weights = load_weights(run, result)
    model = restore_model(job.model, weights.tensors)
    watch.lap("checkpoint")
    data = load_dataset(job)
    watch.lap("data")
    digest = digest_weights(weights.tensors)
    return _Trained(run, job, weights, data, model, digest, final_split(data), model_dtype(model))


def _export_and_score(trained: _Trained, batch: ExportBatch, watch: _Stopwatch) -> FinishResult:
    with closing(batch):
        batch.write(_with_program(trained.job.export))
        if not batch.folders():  # the trained weights are never left as a checkpoint only
            batch.write([Use(use=_FALLBACK)])
        watch.lap("write")
        scored = trained.score_first(batch.folders())
        watch.lap("evaluate")
        outcomes = batch.collect()
        watch.lap("verify_wait")
    good = {outcome.format: outcome.path for outcome in outcomes if outcome.ok}
    if scored is None or scored[0] not in good:  # what was evaluated did not compare: evaluate what did
        scored = trained.score_first(good)
    if scored is None:
        reasons = "; ".join(f"{outcome.format}: {outcome.error}" for outcome in outcomes)
        raise ExportError(f"no format could be exported from {trained.weights.checkpoint}: {reasons}")
    return FinishResult(
        run_id=trained.run.run_id,
        checkpoint=trained.weights.checkpoint,
        step=trained.weights.step,
        weights_digest=trained.digest,
        job_digest=job_digest(trained.job),
        exports=outcomes,
        scored_format=scored[0],
        score=scored[1],
        notes=trained.weights.notes,
        seconds=watch.seconds,
    )


def _with_program(uses: Sequence[Use]) -> tuple[Use, ...]:
    """Return the formats, the program first: it is what MLflow serves and what is evaluated."""
    rest = tuple(use for use in uses if use.use != _SERVED)
    wanted = [use for use in uses if use.use == _SERVED]
    return (*(wanted or [Use(use=_SERVED)]), *rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage for the run folder given; the outcome is in finish.json. Return the exit code."""
    die_with_parent()
    folder = (arguments or sys.argv[1:])[0]
    run = RunDir(Path(folder).resolve())
    setup_file_logging(run.logs / "finish.log")
    logging.captureWarnings(True)
    try:
        found = finish(run)
    except OrchestratorError as error:
        write_failure(run, error)
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for outcome in found.failed:
        sys.stderr.write(f"export {outcome.format} failed: {outcome.error}\n")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
