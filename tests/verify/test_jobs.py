"""Every job under jobs/verify agrees with one process, as does what once did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import jobs
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_job
from orchestrator.verify.run import verify_job

FILES = sorted((Path(jobs.__path__[0]) / "verify").glob("*.yaml"))


def test_there_is_a_job_for_each_idea() -> None:
    assert len(FILES) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_job_agrees(file: Path) -> None:
    report = verify_job(load_job(file).spec, num_steps=2)
    assert report.agrees, [(found.first, found.error) for found in report.comparisons]


def test_a_zero_bubble_schedule_keeps_the_gradients_of_sharded_weights() -> None:
    job = JobSpec.model_validate(
        {
            "model": {"use": "mlp", "inputs": 64, "hidden": [16, 16, 16], "outputs": 10},
            "data": {"use": "digits", "flat": True},
            "optim": {"use": "sgd", "lr": 0.1},
            "train": {"steps": 5, "batch_size": 32, "precision": "fp64"},
            "parallel": {"replicate": 1, "pipeline": 2, "shard": 2, "schedule": "interleaved_zero_bubble"},
        }
    )
    assert verify_job(job, num_steps=1).agrees


@pytest.mark.parametrize("norm", ["none", "group"])
def test_images_go_from_stage_to_stage_whatever_their_memory_layout(norm: str) -> None:
    schedule = "gpipe" if norm == "none" else "zbv_zero_bubble"
    job = JobSpec.model_validate(
        {
            "model": {"use": "cnn", "channels": [8, 8, 8], "norm": norm},
            "data": {"use": "digits"},
            "optim": {"use": "sgd", "lr": 0.1},
            "train": {"steps": 5, "batch_size": 16, "precision": "fp64"},
            "parallel": {"replicate": 1, "pipeline": 2, "schedule": schedule},
        }
    )
    assert verify_job(job, num_steps=1).agrees
