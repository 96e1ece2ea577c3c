"""Runs with a ready SQLite store (a migrated template is copied), and ways to look at what MLflow holds."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import handle, store
from orchestrator.tracking.handle import SenderHandle, start_sender
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import TrackingRequest, write_request
from orchestrator.tracking.sender import Sender
from orchestrator.tracking.ship import Shipper

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def template_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    store.open_client(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture
def run(tmp_path: Path, template_db: Path) -> RunDir:
    """A fresh run in a storage folder whose MLflow store is already migrated."""
    folder = tmp_path / "runs" / "job-1"
    folder.mkdir(parents=True)
    shutil.copyfile(template_db, folder.parent / "mlflow.db")
    return RunDir(folder)


@pytest.fixture
def start() -> Iterator[Callable[..., SenderHandle]]:
    """Start senders that do not outlive the test."""
    handles: list[SenderHandle] = []

    def begin(run: RunDir, request: TrackingRequest, **options: Any) -> SenderHandle:
        handles.append(start_sender(run, request, **options))
        return handles[-1]

    yield begin
    for each in handles:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def sync_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sync` ship in this process, which has mlflow imported."""

    def begin(run: RunDir, request: TrackingRequest, *, once: bool) -> SimpleNamespace:
        code = Sender(run, request, once=once, launch="").work()
        return SimpleNamespace(process=SimpleNamespace(wait=lambda timeout_s: code))

    monkeypatch.setattr(handle, "start_sender", begin)


@pytest.fixture
def pump(run: RunDir) -> Callable[..., Pump]:
    """Open the run's store in this process and return a fresh pump for it, as a restarted sender would."""

    def build(**request_changes: Any) -> Pump:
        request = write_request(run, **({"resume": (run.path / "tracking.json").exists()} | request_changes))
        client = store.open_client(request.uri, run.storage)
        experiment_id = store.ensure_experiment(client, request, run.storage)
        run_id = store.ensure_run(client, request, experiment_id, request.mlflow_run_id)
        return Pump(run, Shipper(client, run, request, experiment_id, run_id), request.after_bytes)

    return build


def drain(pump: Pump) -> None:
    """Ship until nothing is left, then the last word."""
    while pump.round():
        pass
    if pump.final is not None:
        pump.finish()


def write_steps(run: RunDir, writer: str, steps: range, key: str = "train/loss") -> None:
    """Record value step/8 at each step."""
    with SpoolWriter(run.spool / f"{writer}.jsonl") as spool:
        for step in steps:
            spool.metrics(step, {key: step / 8})


def end_run(run: RunDir, status: str = "FINISHED") -> None:
    """Write the driver's last word."""
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.record("status", status=status)


def history(client: Any, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    """Return (step, value) of every stored point, in order of steps."""
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def assert_each_step_once(points: list[tuple[int, float]], steps: range) -> None:
    """Check that the points are exactly value step/8 at each step, each once."""
    assert [step for step, n in Counter(step for step, _ in points).items() if n > 1] == []
    assert points == [(step, step / 8) for step in steps]
