"""Stages of a compressed trial as runs of their own: what is written for the sender, without a cluster or a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.spec.load import load_spec
from orchestrator.sweep.stages import tell_stages
from orchestrator.tracking.request import read_request, write_request
from tests.sweep.jobs import tiny_sweep

STEPS = [{"use": "prune", "ratio": 0.25}, {"use": "export"}]


@pytest.fixture
def trial(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "sweep-1" / "trials" / "t007")
    run.path.mkdir(parents=True)
    write_request(
        run, uri=f"sqlite:///{tmp_path}/m.db", experiment="mine", tags={"orchestrator.run_id": "sweep-1/t007"}
    )
    result = {
        "step": 20,
        "train_s": 3.0,
        "step_s": 0.1,
        "metrics": {"val/loss": 0.5},
        "best_metrics": {"val/loss": 0.4},
    }
    run.result.write_text(json.dumps(result))
    return run


def job(steps: list[dict[str, Any]]) -> JobSpec:
    return load_spec({**tiny_sweep(Path("unused"), {}), "compress": {"steps": steps}})


def step(number: int, use: str) -> dict[str, Any]:
    values = {"seconds": 2.0, "size_bytes": 900, "params": 30, "metrics": {"val/loss": 0.6}, "warning": ""}
    return {"number": number, "use": use, **values}


def compressed(trial: RunDir, status: str, steps: list[dict[str, Any]], error: str = "") -> None:
    trial.compress.write_text(json.dumps({"status": status, "steps": steps, "error": error}))


def told(trial: RunDir) -> dict[str, list[dict[str, Any]]]:
    """Return the spool of every stage."""
    found = {}
    for path in sorted(trial.stages.iterdir()) if trial.stages.is_dir() else ():
        lines = (path / "spool" / "driver.jsonl").read_text().splitlines()
        found[path.name] = [json.loads(line) for line in lines]
    return found


def test_every_stage_has_its_figures_its_options_and_its_time(trial: RunDir) -> None:
    compressed(trial, "ok", [step(1, "prune"), step(2, "export")])
    tell_stages(trial, job(STEPS))
    found = told(trial)
    assert list(found) == ["0_train", "1_prune", "2_export"]
    assert found["0_train"][0]["values"] == {"val/loss": 0.4, "step_s": 0.1, "seconds": 3.0}
    assert found["1_prune"][0]["values"] == {"val/loss": 0.6, "size_bytes": 900, "params": 30, "seconds": 2.0}
    assert [records[-1]["status"] for records in found.values()] == ["FINISHED"] * 3
    pruned, exported = (read_request(RunDir(trial.stages / name)) for name in ("1_prune", "2_export"))
    assert pruned is not None
    assert exported is not None
    assert (pruned.run_name, pruned.params, pruned.experiment) == ("1 prune", {"ratio": "0.25"}, "mine")
    assert pruned.tags == {"orchestrator.kind": "stage", "orchestrator.stage_of": "sweep-1/t007"}
    assert exported.started_ms - pruned.started_ms == 2000, "one after the other"
    assert pruned.after_bytes == 0, "the status in the spool is this start's own"


def test_what_was_shared_has_no_training_of_its_own(trial: RunDir) -> None:
    compressed(trial, "ok", [step(1, "prune"), step(2, "export")])
    tell_stages(trial, job(STEPS), trained_by="t001")
    assert list(told(trial)) == ["1_prune", "2_export"]
    request = read_request(RunDir(trial.stages / "1_prune"))
    assert request is not None
    assert request.tags["trained_by"] == "t001"


def test_the_step_that_failed_is_a_failed_run_with_the_reason(trial: RunDir) -> None:
    compressed(trial, "failed", [step(1, "prune")], error="no such operator")
    tell_stages(trial, job(STEPS))
    found = told(trial)
    assert list(found) == ["0_train", "1_prune", "2_export"]
    assert [record.get("text", record.get("status")) for record in found["2_export"][1:]] == [
        "no such operator",
        "FAILED",
    ]


def test_a_trial_that_is_not_compressed_has_no_stages_and_none_is_told_twice(trial: RunDir) -> None:
    tell_stages(trial, job([]))
    assert told(trial) == {}
    compressed(trial, "ok", [step(1, "prune"), step(2, "export")])
    tell_stages(trial, job(STEPS))
    before = told(trial)
    tell_stages(trial, job(STEPS))
    assert told(trial) == before
