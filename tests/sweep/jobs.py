"""Tiny sweeps for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.spec.load import load_spec
from orchestrator.sweep.result import SweepResult
from orchestrator.sweep.run import run_sweep


def tiny_sweep(storage: Path, sweep: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return the plain data of a sweep whose trials take a fraction of a second."""
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {"use": "mlp", "inputs": 2, "hidden": [8], "outputs": 2},
        "data": {"use": "synthetic", "kind": "blobs", "num_samples": 256, "features": 2, "classes": 2},
        "optim": {"use": "adamw", "lr": 0.05},
        "train": {"steps": 20, "batch_size": 16, "eval_every_steps": 5},
        "cluster": {"storage": str(storage), "backend": "gloo", "gpus_per_worker": 0, "cpus_per_worker": 1},
        "track": {"system_s": None, "every_steps": 5, "experiment": "tiny"},
        "export": [{"use": "safetensors"}],
        "sweep": {"space": {"optim.lr": [0.01, 0.05, 0.1]}, "trials": 3, "export": "none", **sweep},
    }
    for section, changes in sections.items():
        data[section] = {**data.get(section, {}), **changes}
    return data


def search(data: dict[str, Any], **more: Any) -> tuple[SweepResult, list[Event]]:
    """Run the sweep; return its result and what was told."""
    events: list[Event] = []
    return run_sweep(load_spec(data), data, on_event=events.append, command="test", **more), events
