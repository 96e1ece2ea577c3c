"""What a finished run left to be exported: its job, how training ended, and the weights of its best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import CheckpointError, ExportError
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainedWeights:
    """Full tensors by name, the checkpoint they come from, and what had to be passed over to get them."""

    tensors: Mapping[str, Tensor]
    checkpoint: str
    step: int
    notes: tuple[str, ...] = ()


def read_job(run: RunDir) -> JobSpec:
    """Return the job of a run. Raises ExportError when the run has none."""
    return JobSpec.model_validate(_read_json(run.job, "the run was never started"))


def read_result(run: RunDir) -> Mapping[str, Any]:
    """Return how training ended (fields of FitResult). Raises ExportError when it has not ended by itself."""
    return _read_json(run.result, "training has not ended by itself: `orchestrator run --resume` goes on with it")


def load_weights(run: RunDir, result: Mapping[str, Any]) -> TrainedWeights:
    """Return the weights of the best checkpoint; if there is none or it is damaged, of the last.

    Raises CheckpointError when neither can be read.
    """
    names = [result.get("best_checkpoint"), result.get("last_checkpoint")]
    notes: list[str] = []
    for name in dict.fromkeys(name for name in names if name):
        try:
            tensors, step = read_checkpoint(run.checkpoints / name)
        except CheckpointError as error:
            notes.append(f"checkpoint {name} passed over: {error.message}")
            continue
        return TrainedWeights(tensors, name, step, tuple(notes))
    raise CheckpointError(
        f"run {run.run_id} has no checkpoint to export: {'; '.join(notes) or 'none was saved'}",
        hint="`orchestrator run --resume` continues the run from what can still be read",
    )


def read_checkpoint(folder: Path) -> tuple[Mapping[str, Tensor], int]:
    """Return (weights by name, optimiser steps done) of one checkpoint folder, verified. Raises CheckpointError."""
    from orchestrator.checkpoint.load import load_consolidated
    from orchestrator.checkpoint.manifest import CheckpointRef, read_manifest

    try:
        ref = CheckpointRef(folder, read_manifest(folder))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no committed checkpoint (no manifest)") from None
    tensors, meta = load_consolidated(ref)
    return tensors, meta.step


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist", hint=hint) from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} does not hold a JSON object")
    return content
