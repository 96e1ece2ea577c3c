"""A sweep whose driver is killed or interrupted goes on: nothing repeated, changed or lost, nothing left running."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.sweep.jobs import tiny_sweep
from tests.sweep.test_run import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TRIALS = 8


def write_job(folder: Path, **sweep: Any) -> Path:
    data = tiny_sweep(
        folder / "runs",
        {"space": {"optim.lr": {"min": 0.01, "max": 0.1, "log": True}}, "trials": TRIALS, **sweep},
        train={"callbacks": [{"use": "tests.cluster.faults:Slow", "seconds": 0.04}]},
    )
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def start(job: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator", "sweep", str(job), "--json", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs" / "tiny-1" / "sweep" / "ledger.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def wait_for_trials(folder: Path, count: int, process: subprocess.Popen[str], *, event: str = "ended") -> None:
    end = time.monotonic() + 200
    while sum(record["event"] == event for record in ledger_of(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def still_there(processes: list[psutil.Process], within_s: float = 30.0) -> list[str]:
    """Return what of these is alive after a while; a sender ships what it has and then leaves."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [" ".join(process.cmdline()) for process in alive if process.is_running()]


def check_ledger(folder: Path) -> None:
    records = ledger_of(folder)
    points = {r["trial"]: r["hash"] for r in records if r["event"] == "proposed"}
    assert len(points) == sum(r["event"] == "proposed" for r in records), "a number was given twice"
    finished = [r["trial"] for r in records if r["event"] == "ended" and r["state"] == "finished"]
    assert sorted(finished) == list(range(TRIALS)), "each trial finishes once"
    ended: set[int] = set()
    for record in records:
        if record["event"] == "ended" and record["state"] == "finished":
            ended.add(record["trial"])
        if record["event"] == "begun":
            assert record["trial"] not in ended, "a finished trial was begun again"


def check_jobs(folder: Path) -> None:
    """The job of every trial has the value that was proposed."""
    for record in ledger_of(folder):
        if record["event"] == "proposed":
            trial = folder / "runs" / "tiny-1" / "trials" / f"t{record['trial']:03d}"
            job = json.loads((trial / "job.json").read_text())
            assert job["optim"]["lr"] == record["point"]["optim.lr"]


def kill_and_resume(folder: Path, after: int, *, event: str, sync: bool = False) -> None:
    job = write_job(folder)
    process = start(job)
    wait_for_trials(folder, after, process, event=event)
    family = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert still_there(family) == []
    if sync:
        words = [sys.executable, "-m", "orchestrator", "runs", "sync", "tiny-1", "--storage", str(folder / "runs")]
        subprocess.run(words, check=True, capture_output=True, timeout=200)
        statuses = [run["status"] for run in mlflow_runs(folder / "runs")]
        assert "KILLED" in statuses
        assert "RUNNING" not in statuses
    again = start(job, "--resume")
    said, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert json.loads(said)["counts"] == {"finished": TRIALS}
    check_ledger(folder)
    check_jobs(folder)


@pytest.mark.slow
def test_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 3, event="ended", sync=True)
    runs = mlflow_runs(tmp_path / "runs")
    assert len(runs) == 1 + TRIALS
    assert {run["status"] for run in runs} == {"FINISHED"}


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_a_driver_killed_at_twenty_random_times_is_resumed(number: int, tmp_path: Path) -> None:
    numbers = random.Random(number)
    event, after = numbers.choice(["proposed", "begun", "evaluated", "ended"]), numbers.randint(1, TRIALS - 1)
    kill_and_resume(tmp_path, after, event=event)
    print(f"round {number}: killed after {after} {event}, resumed")


@pytest.mark.slow
def test_an_interrupted_sweep_saves_leaves_and_goes_on(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    process = start(job)
    wait_for_trials(tmp_path, 2, process)
    os.kill(process.pid, signal.SIGINT)
    said, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    page = json.loads(said)
    assert page["state"] == "stopped"
    assert page["counts"]["finished"] >= 2
    statuses = {run["status"] for run in mlflow_runs(tmp_path / "runs")}
    assert "RUNNING" not in statuses
    again = start(job, "--resume")
    said, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert json.loads(said)["counts"] == {"finished": TRIALS}
    check_ledger(tmp_path)
    runs = mlflow_runs(tmp_path / "runs")
    assert len(runs) == 1 + TRIALS
    assert {run["status"] for run in runs} == {"FINISHED"}


@pytest.mark.soak
def test_a_killed_sweep_that_is_stopped_before_its_trials_go_on_leaves_none_running(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    process = start(job)
    wait_for_trials(tmp_path, 2, process, event="evaluated")
    family = children_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert still_there(family) == []
    again = start(job, "--resume")
    end = time.monotonic() + 60
    record = tmp_path / "runs" / "tiny-1" / "run.json"
    while json.loads(record.read_text())["attempt"] < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(again.pid, signal.SIGINT)
    said, told = again.communicate(timeout=120)
    assert again.returncode == 130, told
    assert json.loads(said)["counts"]["interrupted"] > 0
    runs = mlflow_runs(tmp_path / "runs")
    assert len(runs) > 1
    assert {run["status"] for run in runs} == {"KILLED"}
    assert {run["tags"].get("trial.state") for run in runs if "trial" in run["tags"]} == {"interrupted"}


@pytest.mark.soak
def test_a_second_interrupt_ends_at_once_and_leaves_nothing_running(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    process = start(job, "train.steps=2000")
    wait_for_trials(tmp_path, 2, process, event="begun")
    time.sleep(1.0)
    family = children_of(process.pid)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert still_there(family) == []
    assert "RUNNING" not in {run["status"] for run in mlflow_runs(tmp_path / "runs")}
