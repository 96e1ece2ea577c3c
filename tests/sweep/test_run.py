"""Whole sweeps on a local Ray cluster with a real MLflow store: found, recorded, resumed, extended, nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from tests.sweep.jobs import search, tiny_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Hold a sweep to leaving no process; what was there before (the fork server of other tests) is not its own."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    new = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    left = [" ".join(child.cmdline()) for child in new]
    assert not [words for words in left if "ray" in words or "orchestrator" in words]


def mlflow_runs(storage: Path) -> list[dict[str, Any]]:
    """Return all MLflow runs of a storage folder, read in a process of its own."""
    code = (
        "import json, sys, mlflow\n"
        "client = mlflow.MlflowClient(tracking_uri=sys.argv[1])\n"
        "ids = [each.experiment_id for each in client.search_experiments()]\n"
        "runs = client.search_runs(ids, max_results=1000)\n"
        "print(json.dumps([dict(name=r.info.run_name, id=r.info.run_id, status=r.info.status, params=r.data.params,"
        " tags=r.data.tags, metrics=r.data.metrics) for r in runs]))\n"
    )
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=120, check=True)
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def test_a_search_trains_every_point_of_a_grid_and_mlflow_shows_it(tmp_path: Path) -> None:
    data = tiny_sweep(
        tmp_path / "runs",
        {
            "space": {"optim.lr": [0.01, 0.1], "model.hidden": [[4], [8], [3, 3]]},
            "constraints": ["len(model.hidden) == 1"],
            "search": {"use": "grid"},
            "objectives": {"val/loss": "min", "model/params": "min"},
            "trials": None,
            "export": "best",
        },
        track={"register_as": "tiny", "alias": "champion"},
    )
    data["export"] = [{"use": "program"}]
    result, events = search(data)
    assert result.state == "finished"
    assert result.summary.counts == {"finished": 4, "infeasible": 2}
    assert result.exit_code == 0
    assert result.verdict.startswith("finished: best t")
    assert next(event.text for event in events if event.kind == "schedule").startswith("up to 6 trials, ")
    runs = mlflow_runs(tmp_path / "runs")
    parent = next(run for run in runs if run["tags"]["orchestrator.kind"] == "sweep")
    children = [run for run in runs if run is not parent]
    assert len(children) == 4
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert {run["tags"]["mlflow.parentRunId"] for run in children} == {parent["id"]}
    assert all(set(run["params"]) == {"optim.lr", "model.hidden"} for run in children)
    assert parent["tags"]["mlflow.note.content"].splitlines()[0] == result.verdict
    assert result.model_version == {"name": "tiny", "version": "1"}
    best = result.summary.best
    assert best is not None
    winner = next(run for run in children if run["tags"]["trial"] == best.name)
    assert winner["tags"]["best"] == "true"
    assert "test/loss" in winner["metrics"]
    assert winner["metrics"]["objective/val/loss"] == pytest.approx(best.values["val/loss"])
    assert read_record(result.run).state == "finished"
    page = json.loads((result.path / "sweep" / "summary.json").read_text())
    reasons = {trial["reason"] for trial in page["trials"] if trial["state"] == "infeasible"}
    assert reasons == {"len(model.hidden) == 1 does not hold (model.hidden = [3, 3])"}
    kept = [path.parent.name for path in (result.path / "trials").glob("*/checkpoints")]
    assert sorted(kept) == sorted(result.summary.trials[key].name for key in result.summary.front)


@pytest.mark.slow
def test_a_trial_gives_what_its_job_gives_when_run_alone(tmp_path: Path) -> None:
    """Also for the second trial of a warm process: nothing of the first leaks into it."""
    from orchestrator import api

    data = tiny_sweep(
        tmp_path / "runs",
        {"space": {"model.dropout": [0.5, 0.2], "optim.lr": [0.02]}, "search": {"use": "grid"}, "parallel_trials": 1},
        model={"dropout": 0.1},
    )
    result, _ = search(data)
    alone = tmp_path / "alone"
    job = result.path / "trials" / "t001" / "job.yaml"
    run = api.run(str(job), [f"cluster.storage={alone}", "name=alone"])
    told = yaml.safe_load(job.read_text())
    assert told["model"]["dropout"] == 0.2
    assert "sweep" not in told
    fitted = json.loads((run.path / "result.json").read_text())
    assert result.summary.trials[1].values["val/loss"] == fitted["best_metrics"]["val/loss"]


@pytest.mark.slow
def test_a_finished_sweep_is_extended_and_finished_trials_are_not_repeated(tmp_path: Path) -> None:
    data = tiny_sweep(tmp_path / "runs", {"space": {"optim.lr": [0.01, 0.1]}, "search": {"use": "grid"}})
    first, _ = search(data)
    before = {trial.name: dict(trial.values) for trial in first.summary.trials.values()}
    data["sweep"] |= {"space": {"optim.lr": [0.01, 0.02, 0.1]}, "search": {"use": "random"}, "trials": 3}
    second, events = search(data, resume="latest")
    assert second.run_id == first.run_id
    begun = [event.text for event in events if event.kind == "trial" and event.data["what"] == "begun"]
    assert begun == ["t002"]
    assert {name: before[name] for name in before} == {
        trial.name: trial.values for trial in second.summary.trials.values() if trial.name in before
    }
    assert second.summary.trials[2].point == {"optim.lr": 0.02}
    runs = mlflow_runs(tmp_path / "runs")
    assert len(runs) == 4
    assert {run["status"] for run in runs} == {"FINISHED"}


@pytest.mark.soak
def test_latency_is_measured_while_nothing_else_trains_and_repeats_are_put_together(tmp_path: Path) -> None:
    data = tiny_sweep(
        tmp_path / "runs",
        {
            "space": {"model.hidden": [[4], [2048, 2048]]},
            "search": {"use": "grid"},
            "objectives": {"val/loss": "min", "time/latency_ms": "min"},
            "repeats": 2,
        },
    )
    result, _ = search(data)
    small, large = result.summary.trials.values()
    assert 0 < small.values["time/latency_ms"] < large.values["time/latency_ms"]
    assert small.repeats[0]["time/latency_ms"] != small.repeats[1]["time/latency_ms"]


@pytest.mark.soak
def test_two_workers_a_trial_beside_trials_of_one_and_repeats(tmp_path: Path) -> None:
    data = tiny_sweep(
        tmp_path / "runs",
        {
            "space": {"parallel.replicate": [1, 2, 1, 64], "optim.lr": [0.01, 0.02]},
            "search": {"use": "grid"},
            "repeats": 2,
            "trials": 6,
        },
        cluster={"cpus_per_worker": 0.5},
    )
    result, _ = search(data)
    assert result.summary.counts == {"finished": 4, "infeasible": 2}
    for trial in result.summary.trials.values():
        if trial.state == "finished":
            assert sorted(trial.repeats) == [0, 1]
            mean = sum(trial.repeats[index]["val/loss"] for index in (0, 1)) / 2
            assert trial.values["val/loss"] == pytest.approx(mean)
            assert trial.workers == trial.point["parallel.replicate"]
    # The layout never changes the result: each learning rate has the same values on one process and on two.
    by_rate: dict[float, list[float]] = {}
    for trial in result.summary.trials.values():
        if trial.state == "finished":
            by_rate.setdefault(trial.point["optim.lr"], []).append(trial.values["val/loss"])
    assert all(values == pytest.approx([values[0]] * 2, rel=1e-5) for values in by_rate.values())


@pytest.mark.slow
def test_failures_divergence_and_memory_are_told_apart_and_the_others_go_on(tmp_path: Path) -> None:
    fault = "tests.cluster.faults:Fault"
    data = tiny_sweep(
        tmp_path / "runs",
        {
            "space": {
                "optim.lr": [0.05],
                "train.callbacks": [
                    [],
                    [{"use": fault, "what": "raise", "step": 7}],
                    [{"use": fault, "what": "memory", "step": 7}],
                    [{"use": fault, "what": "kill", "step": 7, "marker": str(tmp_path / "once")}],
                ],
            },
            "search": {"use": "grid"},
            "trials": None,
        },
    )
    result, events = search(data)
    assert [trial.state for trial in result.summary.trials.values()] == ["finished", "failed", "oom", "finished"]
    assert result.exit_code == 3
    assert any(event.data.get("what") == "retry" for event in events if event.kind == "trial")
    statuses = {run["tags"].get("trial"): run["status"] for run in mlflow_runs(tmp_path / "runs")}
    assert statuses == {None: "FINISHED", "t000": "FINISHED", "t001": "FAILED", "t002": "FAILED", "t003": "FINISHED"}
    record = read_record(RunDir(result.path / "trials" / "t001"))
    assert record.state == "failed"
