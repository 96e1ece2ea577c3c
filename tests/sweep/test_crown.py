"""Tags of the front and the registry's alias are true after every end of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.spec.load import load_spec
from orchestrator.sweep.closing import front_of
from orchestrator.sweep.crown import claim_name, crown
from orchestrator.sweep.drive import SweepLoop
from orchestrator.sweep.ledger import Ledger
from orchestrator.tracking.request import read_request
from tests.sweep.fakes import FakePool, Trainer, drive, folder_for
from tests.sweep.jobs import search, tiny_sweep
from tests.sweep.test_run import mlflow_runs


def crowned(run: RunDir, loop: SweepLoop) -> list[int]:
    ledger = Ledger(run.sweep / "ledger.jsonl")
    front = front_of(ledger, loop.source.objectives)
    crown(run, ledger, front)
    ledger.close()
    return front


def said_of(trial: RunDir) -> tuple[dict[str, str], str]:
    """Return the newest value of each tag, and the last status."""
    lines = [json.loads(line) for line in (trial.spool / "driver.jsonl").read_text().splitlines()]
    tags: dict[str, str] = {}
    for line in lines:
        tags |= line["values"] if line["kind"] == "tags" else {}
    assert lines[-1]["kind"] == "status"
    ends = [line["time_ms"] for line in lines if line["kind"] == "status"]
    assert ends[-1] - ends[0] < 100, "telling of a trial does not prolong it"
    return tags, lines[-1]["status"]


def test_a_trial_that_an_extension_beats_loses_its_tags_and_the_name(tmp_path: Path) -> None:
    data = tiny_sweep(tmp_path / "runs", {"space": {"optim.lr": [0.2, 0.1]}, "search": {"use": "grid"}, "trials": None})
    data["track"] |= {"register_as": "tiny", "alias": "champion"}
    run = folder_for(data)
    assert crowned(run, drive(run, data, FakePool(Trainer()))) == [1]
    ledger = Ledger(run.sweep / "ledger.jsonl")
    claim_name(run, load_spec(data), ledger, 1)
    ledger.close()
    data["sweep"]["space"] = {"optim.lr": [0.2, 0.1, 0.05]}
    assert crowned(run, drive(run, data, FakePool(Trainer()))) == [2]
    ledger = Ledger(run.sweep / "ledger.jsonl")
    claim_name(run, load_spec(data), ledger, 2)
    ledger.close()
    old, new = RunDir(run.trials / "t001"), RunDir(run.trials / "t002")
    assert [said_of(each)[0]["front"] for each in (old, new)] == ["false", "true"]
    assert [said_of(each)[0]["best"] for each in (old, new)] == ["false", "true"]
    assert {said_of(each)[1] for each in (old, new)} == {"FINISHED"}
    assert "front" not in said_of(RunDir(run.trials / "t000"))[0]
    names = [(request.register_as, request.alias) for each in (old, new) if (request := read_request(each))]
    assert names == [(None, None), ("tiny", "champion")]


@pytest.mark.soak
@pytest.mark.ray
def test_after_an_extension_the_alias_is_on_the_winner_though_the_older_one_is_exported_again(tmp_path: Path) -> None:
    """Both are on the front: the older one has fewer weights."""
    sweep = {
        "space": {"model.hidden": [[2]], "optim.lr": [0.00001]},
        "search": {"use": "grid"},
        "trials": None,
        "objectives": {"val/loss": "min", "model/params": "min"},
        "export": "front",
    }
    data = tiny_sweep(tmp_path / "runs", sweep, track={"register_as": "tiny", "alias": "champion"})
    data["export"] = [{"use": "program"}]
    first, _ = search(data)
    assert first.model_version == {"name": "tiny", "version": "1"}
    data["sweep"]["space"] = {"model.hidden": [[8]], "optim.lr": [0.1]}
    second, _ = search(data, resume="latest")
    assert second.summary.front == [1, 0]
    assert second.model_version == {"name": "tiny", "version": "2"}
    tags = {run["tags"]["trial"]: run["tags"] for run in mlflow_runs(tmp_path / "runs") if "trial" in run["tags"]}
    assert {name: (each["front"], each["best"]) for name, each in tags.items()} == {
        "t000": ("true", "false"),
        "t001": ("true", "true"),
    }
    assert alias_of(tmp_path / "runs", "tiny", "champion") == "2"


def alias_of(storage: Path, name: str, alias: str) -> str:
    import subprocess
    import sys

    code = (
        "import sys, mlflow\n"
        "client = mlflow.MlflowClient(tracking_uri=sys.argv[1], registry_uri=sys.argv[1])\n"
        "print(client.get_model_version_by_alias(sys.argv[2], sys.argv[3]).version)\n"
    )
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    words = [sys.executable, "-c", code, uri, name, alias]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout.split()[-1]
