"""A teacher from disk: the folder of a run, whatever layout it trained in, or one that `export` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.export.manifest import MANIFEST_FILE, check_folder
from orchestrator.export.source import load_weights, read_job, read_result
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import nn


def teacher_job(place: str) -> JobSpec:
    """Return the job of a teacher, from its folder's pages alone. Raises ExportError when there is none."""
    folder = Path(place).expanduser()
    if (folder / MANIFEST_FILE).is_file():
        return JobSpec.model_validate(check_folder(folder).job)
    if RunDir(folder).job.is_file():
        return read_job(RunDir(folder))
    raise ExportError(
        f"{place} is neither the folder of a run nor one that `export` wrote",
        hint="write `input` for the model before compression, or a folder such as runs/NAME-1",
    )


def load_teacher(place: str) -> nn.Module:
    """Return the teacher in eval mode, in float32 whatever it was trained in.

    Raises ExportError or CheckpointError when it cannot be read.
    """
    from orchestrator import plugins
    from orchestrator.export.base import WeightReader
    from orchestrator.export.restore import restore_model
    from orchestrator.export.weights import plain_copy

    folder, job = Path(place).expanduser(), teacher_job(place)
    if not (folder / MANIFEST_FILE).is_file():
        run = RunDir(folder)
        return plain_copy(restore_model(job.model, load_weights(run, read_result(run)).tensors).float())
    page = check_folder(folder)
    exporter = plugins.build("exporters", page.format, page.options)
    if not isinstance(exporter, WeightReader):
        raise ExportError(
            f"the weights of a teacher in format {page.format} cannot be read back by name",
            hint="give a folder of format program or safetensors, or the run",
        )
    return plain_copy(restore_model(job.model, exporter.read_weights(folder)).float())
