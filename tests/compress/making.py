"""Makes what the tests compress: a small trained model in memory, and artifacts that are wrong in one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.compress import artifact
from orchestrator.compress.base import MODULE, Context, State
from orchestrator.compress.check import check
from orchestrator.compress.manifest import Page, entry_of, read_page, write_page
from orchestrator.compress.pipeline import Trained
from orchestrator.compress.recover import recover
from orchestrator.compress.runtimes.base import runtime_of
from orchestrator.compress.stage import trained_from
from orchestrator.export.weights import state_tensors
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from orchestrator.train.build import build_plain_model

RESNET = {"use": "resnet", "channels": [16, 32], "depths": [1, 1]}
CNN = {"use": "cnn", "channels": [16, 32], "norm": "none"}
STEPS = (
    {"use": "prune", "ratio": 0.5},
    {"use": "finetune", "epochs": 3, "lr": 0.005, "distill": {}},
    {"use": "export"},
    {"use": "quantise"},
)
MEASURE = {"batch": [1], "threads": [1], "rounds": 3}


def make_job(model: dict[str, Any], steps: Sequence[dict[str, Any]] = STEPS, **compress: Any) -> JobSpec:
    return load_spec(
        {
            "name": "tiny",
            "model": model,
            "data": {"use": "digits"},
            "optim": {"lr": 5e-3},
            "train": {"epochs": 1, "batch_size": 64},
            "cluster": {"gpus_per_worker": 0},
            "compress": {"steps": [dict(step) for step in steps], "measure": MEASURE, **compress},
        }
    )


def make_trained(job: JobSpec, epochs: float = 3.0) -> Trained:
    """Return the job's model after some passes over its data."""
    torch.manual_seed(0)
    fresh = trained_from(job, state_tensors(build_plain_model(job)), "step-0", 0)
    if epochs:
        recover(fresh.model, context_of(fresh, Path("/nonexistent")), epochs=epochs)
    return trained_from(job, state_tensors(fresh.model), "step-0", 0)


def context_of(trained: Trained, folder: Path) -> Context:
    return Context(trained.job, trained.plan, trained.data, trained.model, folder, trained.dtype)


def lay_out(trained: Trained, file: Path, folder: Path, model: nn.Module, scheme: str, format: str = "onnx") -> Path:
    """Return an artifact folder around any file (and those of its format beside it), as the pipeline would leave it
    before the check."""
    folder.mkdir(parents=True)
    artifact.write_reference(trained, context_of(trained, folder / "0"), folder)
    files = (file.name,) if format == "onnx" else runtime_of(format).files
    state = State("artifact", model, folder=file.parent, files=files, format=format, scheme=scheme)
    artifact.write_artifact(trained, state, (), folder)
    return folder / "artifact"


def rewrite(place: Path, **changes: Any) -> Page:
    """Write the page of an artifact again, files hashed anew: as somebody would who covers up a change."""
    page = read_page(place)
    page = replace(page, needed={name: entry_of(place / name) for name in page.needed}, **changes)
    write_page(place, page)
    return page


def in_memory(trained: Trained) -> State:
    return State(MODULE, trained.model)


def check_here(place: Path) -> dict[str, Any]:
    """Judge an artifact as the checking process does, without the seconds that a process takes to import torch."""
    page = read_page(place)
    return check(place, page, runtime_of(page.format, page.target))


def flip_a_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
