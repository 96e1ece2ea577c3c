"""Populations on a local Ray cluster: weights go from trial to trial bit for bit, MLflow shows whose they were."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from orchestrator.checkpoint.load import load_consolidated
from orchestrator.checkpoint.verify import find_newest
from orchestrator.runs.paths import RunDir
from orchestrator.sweep.lineage import lineage_of
from orchestrator.sweep.summary import note_rows
from orchestrator.sweep.trial import Trial
from tests.sweep.jobs import search, tiny_sweep
from tests.sweep.test_kill import ledger_of, start, wait_for_trials
from tests.sweep.test_run import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def population(storage: Path, size: int = 4, **sections: Any) -> dict[str, Any]:
    sweep = {
        "space": {"optim.lr": {"min": 0.001, "max": 0.1, "log": True}, "model.dropout": {"min": 0.1, "max": 0.4}},
        "search": {"use": "pbt", "population": size},
        "trials": None,
        "keep": "all",
        "seed": 1,
    }
    optim = {"use": "adamw", "schedule": {"use": "cosine", "warmup_steps": 3}}
    return tiny_sweep(storage, sweep, **{"optim": optim, "train": {"steps": 12, "eval_every_steps": 4}} | sections)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    ref = find_newest(RunDir(folder).checkpoints)
    assert ref is not None
    return load_consolidated(ref)[0]


def curve(lineage: list[Trial]) -> list[tuple[int, dict[str, float]]]:
    return [each for trial in lineage for each in trial.curve]


def survivor(trials: dict[int, Trial]) -> list[Trial]:
    """Return a lineage from first to last step whose values never changed."""
    lineages = [lineage_of(trial, trials) for trial in trials.values()]
    return next(each for each in lineages if len(each) == 3 and all(trial.point == each[0].point for trial in each))


def evaluations_of(run: Path) -> list[tuple[int, float]]:
    """Return (step, val/loss) as a run told its tracker."""
    lines = [json.loads(line) for path in run.glob("spool/rank0-*") for line in path.read_text().splitlines()]
    found = [(line["step"], line["values"]["val/loss"]) for line in lines if "val/loss" in line.get("values", {})]
    return sorted(found)


def test_a_population_is_trained_and_a_survivor_is_what_it_would_have_been_alone(tmp_path: Path) -> None:
    from orchestrator import api

    result, _ = search(population(tmp_path / "runs"))
    trials = dict(result.summary.trials)
    assert result.summary.counts == {"finished": 12}
    assert result.summary.why == "all 3 generations"

    lineage = survivor(trials)
    job = result.path / "trials" / lineage[0].name / "job.yaml"
    alone = api.run(str(job), [f"cluster.storage={tmp_path / 'alone'}", "name=alone"])
    assert [(step, each["val/loss"]) for step, each in curve(lineage)] == evaluations_of(alone.path)
    mine, its = weights(result.path / "trials" / lineage[-1].name), weights(alone.path)
    assert all(torch.equal(mine[name], its[name]) for name in its)

    best = result.summary.best
    assert best is not None
    page = json.loads((result.path / "sweep" / "summary.json").read_text())
    assert [each["trial"] for each in page["lineage"]] == [each.name for each in lineage_of(best, trials)]
    assert page["lineage"][-1]["values"] == best.point
    rows = [title for title, _ in note_rows(result.summary)]
    assert [f"lineage {each.name}" for each in lineage_of(best, trials)] == [
        row for row in rows if row.startswith("lineage")
    ]
    shown = {run["tags"]["trial"]: run for run in mlflow_runs(tmp_path / "runs") if "trial" in run["tags"]}
    for trial in trials.values():
        assert trial.birth is not None
        tags = shown[trial.name]["tags"]
        assert tags["pbt.generation"] == str(trial.birth.generation)
        parent = trials[trial.birth.parent].name if trial.birth.parent is not None else None
        assert tags.get("pbt.parent") == parent
        assert shown[trial.name]["status"] == "FINISHED"
    explored = [trial for trial in trials.values() if trial.origin == "explored"]
    assert len(explored) == 2
    for trial in explored:
        assert trial.birth is not None
        assert trial.point != trials[trial.birth.parent or 0].point


@pytest.mark.soak
def test_gangs_of_two_processes_pass_their_checkpoints_on_too(tmp_path: Path) -> None:
    layout = {"parallel": {"replicate": 2}, "cluster": {"cpus_per_worker": 0.5}}
    one, _ = search(population(tmp_path / "one", 2))
    two, _ = search(population(tmp_path / "two", 2, **layout))
    assert two.summary.counts == {"finished": 6}
    assert {trial.workers for trial in two.summary.trials.values()} == {2}
    for trial in two.summary.trials.values():
        same = one.summary.trials[trial.number]
        assert (trial.birth, trial.point) == (same.birth, same.point)


@pytest.mark.soak
def test_a_killed_driver_goes_on_with_the_same_population(tmp_path: Path) -> None:
    told = {}
    slow = {"callbacks": [{"use": "tests.cluster.faults:Slow", "seconds": 0.05}], "steps": 12, "eval_every_steps": 4}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        job = folder / "job.yaml"
        job.write_text(yaml.safe_dump(population(folder / "runs", train=slow)))
        process = start(job)
        if name == "killed":
            wait_for_trials(folder, 6, process)  # in the middle of the second generation
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            process = start(job, "--resume")
        said, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert json.loads(said)["counts"] == {"finished": 12}
        records = ledger_of(folder)
        born = [(each["point"], each["birth"]) for each in records if each["event"] == "proposed"]
        heard = {(each["trial"], each["step"]): each["metrics"] for each in records if each["event"] == "evaluated"}
        ended = [each["trial"] for each in records if each["event"] == "ended" and each["state"] == "finished"]
        assert sorted(ended) == list(range(12))
        told[name] = born, heard
    assert told["whole"] == told["killed"]
