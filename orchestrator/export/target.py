"""What `eval` is pointed at: a run (id or folder), an export folder or a checkpoint folder -> a model and its job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.export.manifest import MANIFEST_FILE
from orchestrator.export.package import open_export
from orchestrator.export.score import Model, Score, final_split, score
from orchestrator.export.source import read_job
from orchestrator.runs.catalog import find_run
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A model that can be evaluated. `origin` says which file or checkpoint it came from."""

    model: Model
    job: JobSpec
    dtype: str
    origin: str
    num_threads: int = 1


def open_target(text: str, storage: Path, format_name: str = "program") -> Target:
    """Return the model behind a run's id or folder, an export folder or a checkpoint folder.

    `format_name` chooses among a run's exports. Raises JobFileError for an unknown run, ExportError or CheckpointError
    for a damaged or missing file.
    """
    folder = Path(text)
    if not (folder / MANIFEST_FILE).is_file():
        is_id = "/" not in text and RunDir(storage / text).record.is_file()
        by_path = RunDir(folder).job.is_file() and not is_id
        return _open_run(RunDir(folder.resolve()) if by_path else find_run(storage, text), format_name)
    if folder.resolve().parent.name == RunDir(folder).checkpoints.name:
        return _open_checkpoint(folder.resolve())
    return _open_export(folder.resolve())


def evaluate_target(target: Target, split: str | None = None) -> Score:
    """Evaluate on a split (None: test, else val), in one process, as the finish stage does."""
    import torch

    from orchestrator.train.engine import load_dataset

    torch.set_num_threads(target.num_threads)
    data = load_dataset(target.job)
    return score(target.model, target.job, data, split or final_split(data), target.dtype)


def _open_run(run: RunDir, format_name: str) -> Target:
    folder = run.exports / format_name
    if not folder.is_dir():
        there = sorted(path.name for path in run.exports.glob("[!.]*")) if run.exports.is_dir() else []
        raise ExportError(
            f"run {run.run_id} has no export '{format_name}'",
            hint=f"there are: {', '.join(there) or 'none'}; `orchestrator export {run.run_id} --format {format_name}`",
        )
    found = _open_export(folder)
    data = read_job(run).data  # a manifest has no secrets that the data may need
    return replace(found, job=found.job.model_copy(update={"data": data}))


def _open_export(folder: Path) -> Target:
    model, page = open_export(folder)
    dtype = str(page.inputs["dtype"])
    origin = f"{page.format} of {page.checkpoint or folder}"
    return Target(model, JobSpec.model_validate(page.job), dtype, origin, page.num_threads)


def _open_checkpoint(folder: Path) -> Target:
    import torch

    from orchestrator.export.restore import model_dtype, restore_model
    from orchestrator.export.source import read_checkpoint, read_job

    job = read_job(RunDir(folder.parent.parent))
    tensors, _ = read_checkpoint(folder)
    model = restore_model(job.model, tensors)

    def run(inputs_B: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = model(inputs_B)
        return outputs

    num_threads = max(1, int(job.cluster.cpus_per_worker))
    return Target(run, job, model_dtype(model), f"checkpoint {folder.name}", num_threads)
