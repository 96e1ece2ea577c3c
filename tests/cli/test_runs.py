"""`runs`, `runs show`, `runs compare`, `runs sync`, and what a run leaves for them and for MLflow."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.runs.catalog import create_run
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, update_record
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import handle
from orchestrator.tracking.request import read_state, write_request
from tests.cli.conftest import Made


def runs(*words: str, storage: Path) -> Result:
    return CliRunner().invoke(app, ["runs", *words, "--storage", str(storage)])


def answer(*words: str, storage: Path) -> dict[str, Any]:
    done = runs(*words, "--json", storage=storage)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(storage: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{storage / 'mlflow.db'}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two finished runs by hand that differ in a rate and in how good they are."""
    for rate, accuracy in ((0.1, 0.5), (0.2, 0.75)):
        run = create_run(tmp_path, "tiny", "orchestrator run tiny.yaml")
        run.job.write_text(json.dumps({"name": "tiny", "optim": {"use": "adamw", "lr": rate}}))
        update_record(run, state="finished", metrics={"test/accuracy": accuracy}, verdict="good")
    return tmp_path


def test_the_list_says_state_quality_and_size_of_each(two: Path) -> None:
    text = runs(storage=two).output
    assert [line.split()[:2] for line in text.splitlines()[1:3]] == [["tiny-1", "finished"], ["tiny-2", "finished"]]
    assert "test/accuracy 0.75" in text
    assert "2 runs" in text
    listed = answer(storage=two)["runs"]
    assert [each["run_id"] for each in listed] == ["tiny-1", "tiny-2"]
    assert all(each["size_bytes"] > 0 for each in listed)


def test_an_empty_storage_folder_is_no_error(tmp_path: Path) -> None:
    done = runs(storage=tmp_path / "none")
    assert (done.exit_code, done.output.startswith("no runs in")) == (0, True)


def test_one_run_is_shown_whole(two: Path) -> None:
    text = runs("show", "tiny-1", storage=two).output
    for piece in ("finished", "good", "test/accuracy", "orchestrator run tiny.yaml", str(two / "tiny-1")):
        assert piece in text
    assert answer("show", storage=two)["run_id"] == "tiny-2"


def test_a_comparison_has_what_differs_and_all_metrics(two: Path) -> None:
    found = answer("compare", "tiny-1", "tiny-2", storage=two)
    assert found["job"] == {"optim.lr": [0.1, 0.2]}
    assert found["metrics"] == {"test/accuracy": [0.5, 0.75]}
    text = runs("compare", "tiny-1", "tiny-2", storage=two).output
    assert ["optim.lr", "0.1", "0.2"] in [line.split() for line in text.splitlines()]
    assert "adamw" not in text


@pytest.mark.parametrize("words", [("compare", "tiny-1"), ("shwo",), ("show", "a", "b")])
def test_other_words_are_refused_with_what_there_is(words: tuple[str, ...], two: Path) -> None:
    done = runs(*words, storage=two)
    assert done.exit_code == 2
    assert "compare A B" in done.output


def test_an_unknown_run_is_refused_with_those_there_are(two: Path) -> None:
    done = runs("show", "tiny-9", storage=two)
    assert done.exit_code == 2
    assert "tiny-1, tiny-2" in done.output


def test_what_was_not_sent_is_shipped_once(tmp_path: Path, made: Made) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    shutil.copyfile(made.run.storage / "mlflow.db", storage / "mlflow.db")
    run = create_run(storage, "left")
    write_request(run, uri="http://127.0.0.1:9", experiment="left", offline=True)
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.record("params", values={"optim.lr": "0.1"})
        spool.record("status", status="FINISHED")
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        for step in (1, 2, 3):
            spool.metrics(step, {"train/loss": 1.0 / step})
    update_record(run, state="finished")
    # The server of that address never came; the user points the run at the store of the folder.
    write_request(run, experiment="left", resume=True)
    first = answer("sync", "left-1", storage=storage)["runs"]["left-1"]
    assert (first["remaining"], first["rejected"]) == (0, 0)
    assert first["shipped"] >= 5
    assert answer("sync", storage=storage)["runs"]["left-1"]["shipped"] == 0
    query = f"select step from metrics where key = 'train/loss' and run_uuid = '{read_state(run).run_id}'"
    assert sorted(step for (step,) in rows(storage, query)) == [1, 2, 3]


@pytest.mark.slow
def test_a_server_that_is_down_leaves_all_for_later(tmp_path: Path) -> None:
    run = create_run(tmp_path, "left")
    write_request(run, uri="http://127.0.0.1:9", offline=True)
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        spool.metrics(1, {"train/loss": 1.0})
    update_record(run, state="finished")
    done = runs("sync", "--json", storage=tmp_path)
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["runs"]["left-1"]["remaining"] == 1


def test_a_run_that_another_process_is_sending_is_not_said_to_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path, "left")
    write_request(run)
    monkeypatch.setattr(handle, "sync", partial(handle.sync, held_s=0.1))
    run.spool.mkdir(exist_ok=True)
    with open(run.spool / "sender.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = runs("sync", "left-1", storage=tmp_path)
    assert done.exit_code == 1
    assert "0 shipped, 0 remain" in done.output
    assert "another process is sending this run's records" in done.output


def test_a_run_without_tracking_cannot_be_shipped(two: Path) -> None:
    done = runs("sync", "tiny-1", storage=two)
    assert done.exit_code == 1
    assert "no tracking request" in done.output


def mlflow_run(run: RunDir) -> str:
    return read_record(run).mlflow["run_id"]


def test_a_run_has_its_dataset_with_digest_as_an_input(made: Made) -> None:
    query = f"""select d.name, d.digest, t.value, d.dataset_profile from inputs i
        join datasets d on d.dataset_uuid = i.source_id join input_tags t on t.input_uuid = i.input_uuid
        where i.destination_id = '{mlflow_run(made.run)}' and i.source_type = 'DATASET'"""
    ((name, digest, context, profile),) = rows(made.run.storage, query)
    first = json.loads((made.run.spool / "rank0-a1.jsonl").read_text().splitlines()[0])
    assert (first["kind"], first["name"], first["digest"]) == ("dataset", name, digest)
    assert len(digest) == 16
    assert context == "training"
    assert json.loads(profile)["num_samples"]["train"] > 0


def test_a_profiled_run_leaves_a_trace_and_ships_it(made: Made) -> None:
    trace = made.run.artifacts / "profile" / "trace.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert any("aten::" in str(name) for name in names)
    query = f"select artifact_uri from runs where run_uuid = '{mlflow_run(made.run)}'"
    ((uri,),) = rows(made.run.storage, query)
    shipped = Path(str(uri).removeprefix("file://")) / "profile" / "trace.json"
    assert shipped.read_bytes() == trace.read_bytes()


def test_a_dry_run_shows_the_plan_and_makes_nothing(made: Made, tmp_path: Path) -> None:
    words = ["run", str(made.job), f"cluster.storage={tmp_path / 'runs'}", "--dry-run"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "1 rank" in done.output
    assert "30 steps" in done.output
    plan = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["plan"]
    assert plan["batch"]["total_steps"] == 30
    assert list(tmp_path.iterdir()) == []
