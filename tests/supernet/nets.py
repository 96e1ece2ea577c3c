"""Small supernets for the tests of this folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.parallel.process import Rank
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, now_iso, write_json
from orchestrator.spec.job import JobSpec
from orchestrator.supernet.model import build_whole
from orchestrator.supernet.page import Nets, write_nets
from orchestrator.train.engine import Engine, build_engine

WIDE = {"use": "cnn", "channels": [8, 12], "kernel_size": 5}
SMALLEST = {"use": "cnn", "channels": [4], "kernel_size": 3}
PARTS = (
    SMALLEST,
    {"use": "cnn", "channels": [8], "kernel_size": 5},
    {"use": "cnn", "channels": [4, 12], "kernel_size": 3},
    {"use": "cnn", "channels": [8, 6], "kernel_size": 5},
    WIDE,
)
NETS = Nets(PARTS, num_random=2)


def job_data(model: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    return {
        "name": "wide",
        "model": model or WIDE,
        "data": {"use": "digits"},
        "optim": {"use": "adamw", "lr": 0.01, "clip_norm": 1.0, "schedule": {"use": "cosine"}},
        "train": {"steps": 12, "batch_size": 32, "eval_every_steps": 6, **train},
        "cluster": {"gpus_per_worker": 0},
        "checkpoint": {"every_steps": 5},
        "track": {"every_steps": 1, "system_s": None},
    }


def engine_of(data: dict[str, Any], nets: Nets = NETS) -> Engine:
    return build_engine(JobSpec.model_validate(data), Rank(), construct=lambda job: build_whole(job, nets.uses))


def folder_of(path: Path, data: dict[str, Any], nets: Nets = NETS) -> RunDir:
    """Make the folder in which a worker trains a supernet."""
    run = RunDir(path)
    for each in (run.logs, run.spool, run.heartbeats, run.failures):
        each.mkdir(parents=True)
    write_json(run.record, asdict(RunRecord(run_id=run.run_id, name="wide", created=now_iso())))
    run.job.write_text(JobSpec.model_validate(data).model_dump_json())
    write_nets(run, nets)
    return run
