"""Whole sweeps with a supernet on a local Ray cluster: trained once, ranked, fine-tuned, compared, stopped, resumed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from orchestrator.spec.load import load_spec
from orchestrator.supernet.page import ranking_path
from tests.sweep.jobs import search, tiny_sweep
from tests.sweep.test_run import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def sweep_of(storage: Path, trials: int = 7, **search_keys: Any) -> dict[str, Any]:
    data = tiny_sweep(
        storage,
        {
            "space": {"model.channels": [[4], [8], [4, 8], [8, 16]], "model.kernel_size": [3, 5]},
            "search": {"use": "supernet", "steps": 40, "finetune": 0.5, "control": 3, **search_keys},
            "objectives": {"val/accuracy": "max", "model/params": "min"},
            "trials": trials,
        },
        train={"steps": 30, "batch_size": 32, "eval_every_steps": 10},
    )
    return {**data, "model": {"use": "cnn"}, "data": {"use": "digits"}, "checkpoint": {"every_steps": 10}}


def wide_folder(run: RunDir) -> RunDir:
    (found,) = run.trials.glob("supernet-*")
    return RunDir(found)


def test_a_supernet_is_trained_once_its_best_parts_are_fine_tuned_and_the_ranking_is_judged(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    result, events = search(sweep_of(storage))
    assert result.state == "finished"
    assert result.summary.counts == {"finished": 7}
    wide = wide_folder(result.run)
    assert read_record(wide).state == "finished"
    assert not wide.checkpoints.exists()
    page = json.loads((result.run.sweep / "summary.json").read_text())
    alone, tuned = page["rank_correlation"]
    assert (alone["against"], alone["pairs"], tuned["pairs"]) == ("stand-alone", 3, 4)
    assert "; ranking: " in result.verdict
    trials_s = sum(each["seconds"] for each in page["trials"])
    assert page["worker_s"] == pytest.approx(trials_s + page["supernet_s"], abs=0.1)
    assert page["supernet_s"] > 0
    assert any(event.kind == "supernet" and "8 nets scored" in event.text for event in events)

    tuned_trials = [each for each in page["trials"] if each["origin"] == "search"]
    job = yaml.safe_load((result.run.trials / tuned_trials[0]["name"] / "job.yaml").read_text())
    assert job["train"]["epochs"] == 0.5
    assert job["train"]["init"]["file"] == str(wide.path / "weights.safetensors")
    assert job["train"]["init"]["cut_from"] == {"use": "cnn", "channels": [8, 16], "kernel_size": 5}
    load_spec(job)

    runs = mlflow_runs(storage)
    parent = next(run for run in runs if run["tags"]["orchestrator.kind"] == "sweep")
    assert parent["metrics"]["ranking/stand_alone/pairs"] == 3.0
    assert parent["tags"]["ranking.stand_alone"].endswith("over 3 stand-alone trainings (val/accuracy)")
    wide_run = next(run for run in runs if run["tags"]["orchestrator.kind"] == "supernet")
    assert wide_run["status"] == "FINISHED"
    assert wide_run["tags"]["mlflow.parentRunId"] == parent["id"]
    assert wide_run["metrics"]["supernet/val/accuracy"] > 0.2

    before = ranking_path(wide).read_bytes()
    more, events = search(sweep_of(storage, trials=9), resume="latest")
    assert more.summary.counts == {"finished": 9}
    assert any(event.kind == "supernet" and event.text.endswith("trained and ranked before") for event in events)
    assert (read_record(wide).attempt, ranking_path(wide).read_bytes()) == (1, before)


@pytest.mark.soak
def test_a_sweep_that_is_stopped_while_its_supernet_trains_goes_on_with_it(tmp_path: Path) -> None:
    data = sweep_of(tmp_path / "runs", trials=1, steps=4000, control=0)
    data["track"]["offline"] = True
    threading.Thread(target=stop_at_first_checkpoint, args=(tmp_path / "runs",), daemon=True).start()
    result, _ = search(data)
    assert (result.state, result.summary.counts) == ("stopped", {})
    wide = wide_folder(result.run)
    assert not ranking_path(wide).exists()
    assert list(wide.checkpoints.glob("step-*"))
    reached = read_record(wide)
    assert (reached.state, reached.attempt) == ("stopped", 1)

    again, _ = search(data, resume="latest")
    assert again.summary.counts == {"finished": 1}
    assert read_record(wide).attempt == 2
    log = (wide.logs / "rank-0.log").read_text()
    assert "resumed from step-" in log
    assert "scored 8 parts" in log


def stop_at_first_checkpoint(storage: Path) -> None:
    """Ask the sweep to stop as soon as its supernet has a checkpoint."""
    while not (found := list(storage.glob("tiny-*/trials/supernet-*/checkpoints/step-*"))):
        time.sleep(0.05)
    control.request_stop(RunDir(found[0].parents[3]), "a test")
