"""Tiny jobs for the tests of this folder, and what is asked of their runs afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.attempt import Attempt, Order
from orchestrator.cluster.attempts import Executor
from orchestrator.cluster.events import Event
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.plan import Plan
from orchestrator.runs import control
from orchestrator.runs.catalog import create_run
from orchestrator.runs.lease import acquire
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def tiny(storage: Path, *, ranks: int = 1, callbacks: list[dict[str, Any]] | None = None, **train: Any) -> JobSpec:
    """Return a job of 30 steps with a checkpoint every 10, made to be broken."""
    return load_spec(
        {
            "name": "tiny",
            "model": {"use": "mlp", "inputs": 2, "hidden": [8], "outputs": 2},
            "data": {"use": "synthetic", "kind": "blobs", "num_samples": 256, "features": 2, "classes": 2},
            "optim": {"use": "adamw", "lr": 0.05},
            "train": {"steps": 30, "batch_size": 16, "callbacks": callbacks or [], **train},
            "parallel": {"replicate": ranks},
            "cluster": {
                "storage": str(storage),
                "backend": "gloo",
                "gpus_per_worker": 0,
                "cpus_per_worker": 0.5,
                "step_timeout_s": 3.0,
            },
            "checkpoint": {"every_steps": 10},
            "track": {"system_s": None, "every_steps": 5},
        }
    )


def fault(what: str, step: int, **more: Any) -> dict[str, Any]:
    """Return a callback that breaks the run."""
    return {"use": "tests.cluster.faults:Fault", "what": what, "step": step, **more}


def plan_of(spec: JobSpec) -> Plan:
    """Return the plan on any machine."""
    return build_plan(spec, Available(4.0, 0, 2**33))


def make_run(spec: JobSpec) -> RunDir:
    """Make a run whose ranks may begin at once."""
    run = create_run(Path(spec.cluster.storage), spec.name)
    write_json(run.job, spec.model_dump(mode="json"))
    control.allow_start(run)
    return run


def execute(
    spec: JobSpec, launch: Callable[[Order], Attempt], tick: Callable[[RunDir], None] = lambda run: None
) -> tuple[RunDir, list[Event]]:
    """Run all attempts of a new run without tracking and export; return it and what was told."""
    run, events = make_run(spec), list[Event]()
    lease = acquire(run)
    executor = Executor(run, lease, launch, lambda: tick(run), events.append, spec.cluster.max_failures)
    try:
        executor.execute(resume=False)
    finally:
        executor.lease.release()
    return run, events


def final_weights(run: RunDir) -> Mapping[str, Tensor]:
    """Return the weights of the newest checkpoint."""
    from orchestrator.checkpoint.load import load_consolidated
    from orchestrator.checkpoint.verify import find_newest

    newest = find_newest(run.checkpoints)
    assert newest is not None
    assert newest.step == 30
    return load_consolidated(newest)[0]


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two sets of weights agree in every bit."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
