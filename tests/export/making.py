"""Makes what the tests export: models with known weights, and whole runs trained for a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.errors import ExportError
from orchestrator.export.manifest import Verified
from orchestrator.export.package import ExportBatch, ExportOutcome, Source
from orchestrator.export.restore import build_model
from orchestrator.export.verify import verify_folder
from orchestrator.export.weights import digest_weights, plain_copy, state_tensors
from orchestrator.parallel.process import Rank
from orchestrator.runs.catalog import create_run
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.base import Use
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import Ports
from orchestrator.train.saver import CheckpointSaver

CNN = {"use": "cnn", "channels": [4, 8], "norm": "group", "dropout": 0.5}
MLP = {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10, "dropout": 0.1}
NET = {"use": "tests.export.nets:Net", "width": 8}


def make_job(model: dict[str, Any], formats: Sequence[str] = ("program",), **train: Any) -> JobSpec:
    flat = model["use"] != "cnn"
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "model": model,
            "data": {"use": "digits", "flat": flat},
            "optim": {"lr": 1e-2},
            "train": {"steps": 12, "batch_size": 32, "eval_every_steps": 4, **train},
            "cluster": {"gpus_per_worker": 0},
            "export": [{"use": name} for name in formats],
        }
    )


def make_model(job: JobSpec) -> nn.Module:
    torch.manual_seed(0)
    return plain_copy(build_model(job.model))


def make_inputs(job: JobSpec, rows: int = 45) -> Tensor:
    shape = (rows, 1, 8, 8) if job.model.use == "cnn" else (rows, 64)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


class VerifiedHere:
    """Verifies in this process: for tests of what surrounds the comparison, which need no process of its own."""

    def __init__(self, *, warm: bool = False) -> None:
        self.folders: list[Path] = []

    def add(self, folders: Iterable[Path]) -> None:
        self.folders += folders

    def results(self) -> dict[Path, Verified | ExportError]:
        found: dict[Path, Verified | ExportError] = {}
        for folder in self.folders:
            try:
                found[folder] = verify_folder(folder)
            except ExportError as error:
                found[folder] = error
        return found

    def close(self) -> None:
        pass


def export(job: JobSpec, formats: Sequence[str], root: Path, inputs: Tensor | None = None) -> list[ExportOutcome]:
    model = make_model(job)
    source = Source(job, "step-00000012-a1-abcdef", digest_weights(state_tensors(model)))
    batch = ExportBatch(model, make_inputs(job) if inputs is None else inputs, source, root)
    batch.write([Use(use=name) for name in formats])
    return list(batch.collect())


def train_run(storage: Path, job: JobSpec) -> RunDir:
    """Train in this process and leave what a finished run leaves."""
    run = create_run(storage, job.name)
    run.job.write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    store = CheckpointStore(
        run.checkpoints, rank=0, world_size=1, attempt=1, token=1, check_token=lambda: True, keep=2, background=False
    )
    engine = build_engine(job, Rank())
    result = fit(engine, Ports(run=run), CheckpointSaver(run.checkpoints, job, store))
    write_json(run.result, asdict(result))
    return run
