"""Whole calls of `fit` on real ranks, with what they recorded and the weights they end with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from orchestrator.checkpoint.fork import Fork
from orchestrator.checkpoint.manifest import read_manifest
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import Ports
from orchestrator.train.saver import CheckpointSaver


class ListRecorder:
    """Keeps metrics in memory."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}
        self.others: list[dict[str, Any]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(name, {})[step] = value

    def record(self, kind: str, **payload: Any) -> None:
        self.others.append({"kind": kind, **payload})

    def close(self) -> None:
        pass


def tiny_job(**train: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10, "dropout": 0.1},
        "data": {"use": "digits", "flat": True},
        "optim": {"use": "adamw", "lr": 1e-2, "clip_norm": 1.0, "schedule": {"use": "cosine", "warmup_steps": 3}},
        "train": {"steps": 24, "batch_size": 64, "seed": 1, "eval_every_steps": 8, **train},
        "cluster": {"gpus_per_worker": 0},
        "checkpoint": {"every_steps": 5},
        "track": {"every_steps": 1},
    }


def fit_once(
    rank: int,
    world_size: int,
    job: dict[str, Any],
    folder: str,
    resume: bool,
    stop_after: int | None,
    attempt: int,
    until: int | None = None,
    fork: Fork | None = None,
) -> dict[str, Any]:
    """Run `fit`; `stop_after` asks for a stop after so many steps. Returns plain values and full weights."""
    spec = JobSpec.model_validate(job)
    engine = build_engine(spec, Rank(rank, world_size, rank))
    recorder = ListRecorder()
    steps_seen = 0

    def beat(step: int, section: str) -> None:
        nonlocal steps_seen
        steps_seen = step + 1

    store = CheckpointStore(
        Path(folder),
        rank=rank,
        world_size=world_size,
        attempt=attempt,
        token=attempt,
        check_token=lambda: True,
        keep=spec.checkpoint.keep,
        background=spec.checkpoint.background,
    )
    ports = Ports(
        attempt=attempt,
        resume=resume,
        until=until,
        recorder=recorder,
        beat=beat,
        should_stop=lambda: stop_after is not None and steps_seen >= stop_after,
    )
    result = fit(engine, ports, CheckpointSaver(Path(folder), spec, store, fork=fork))
    weights = {}
    for name, parameter in engine.model.module.named_parameters():
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        weights[name] = full.detach().clone()
    return {
        "status": result.status,
        "step": result.step,
        "best": result.best_checkpoint,
        "newest": result.last_checkpoint,
        "best_step": result.best_step,
        "best_metrics": dict(result.best_metrics),
        "train_s": result.train_s,
        "step_s": result.step_s,
        "saved_s": read_manifest(Path(folder) / str(result.last_checkpoint)).meta.monitor["train_s"],
        "recorded": recorder.values,
        "others": recorder.others,
        "weights": weights,
        "noise": torch.rand(3),
    }
