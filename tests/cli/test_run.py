"""`run`, `stop`, `runs` and `clean` as a user types them: a whole life, a killed driver, a stop, a wrong server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from orchestrator.runs.catalog import describe_run
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import is_same_process, read_record
from tests.cluster.jobs import tiny

SLOW = [{"use": "tests.cluster.faults:Slow", "seconds": 0.2}]


def write_job(folder: Path, *, ranks: int = 1, callbacks: list[dict[str, object]] | None = None) -> Path:
    spec = tiny(folder / "runs", ranks=ranks, callbacks=callbacks, steps=30)
    content = spec.model_dump(mode="json", exclude_none=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 200.0) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def saved(run: RunDir) -> int:
    return len(list(run.checkpoints.glob("step-*/manifest.json")))


def mlflow_id(run: RunDir) -> str:
    return read_record(run).mlflow["run_id"]


def test_a_job_is_trained_recorded_listed_and_deleted(tmp_path: Path) -> None:
    code, out, err = finish(start("run", str(write_job(tmp_path)), "--json"))
    assert code == 0, err
    result = json.loads(out)
    run = RunDir(tmp_path / "runs" / "tiny-1")
    assert (result["ok"], result["state"], result["step"], result["run_id"]) == (True, "finished", 30, "tiny-1")
    assert result["metrics"]["test/accuracy"] > 0.5
    assert err.splitlines()[0].startswith("job")
    assert "step 30/30" in err
    assert read_record(run).state == "finished"
    assert mlflow_id(run)
    storage = str(tmp_path / "runs")
    listed = json.loads(finish(start("runs", "--json", "--storage", storage))[1])
    assert [(each["run_id"], each["state"]) for each in listed["runs"]] == [("tiny-1", "finished")]
    assert finish(start("clean", "tiny-1", "--yes", "--storage", storage))[0] == 0
    assert not run.path.exists()


def test_a_killed_driver_leaves_no_rank_and_is_resumed_in_the_same_mlflow_run(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, callbacks=SLOW), RunDir(tmp_path / "runs" / "tiny-1")
    driver = start("run", str(job))
    wait_until(lambda: saved(run) >= 1)
    ranks, first = read_heartbeats(run), mlflow_id(run)
    driver.kill()
    finish(driver)
    wait_until(lambda: not any(is_same_process(beat.pid, beat.pid_started) for beat in ranks), 10.0)
    assert describe_run(run).state == "died"
    code, out, err = finish(start("run", str(job), "--resume", "--json"))
    assert code == 0, err
    assert json.loads(out)["run_id"] == "tiny-1"
    assert mlflow_id(run) == first
    assert "from the newest checkpoint" in err


@pytest.mark.parametrize("how", ["stop", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_stop_saves_closes_truthfully_and_says_how_to_go_on(how: str, tmp_path: Path) -> None:
    job, run = write_job(tmp_path, callbacks=SLOW), RunDir(tmp_path / "runs" / "tiny-1")
    driver = start("run", str(job), "track.description=a test")
    wait_until(lambda: any(beat.step >= 2 for beat in read_heartbeats(run)))
    if how == "stop":
        code, out, _ = finish(start("stop", "--storage", str(run.storage)))
        assert (code, out.strip()) == (0, "tiny-1: stopped")
    else:
        os.kill(driver.pid, signal.SIGINT)
    code, out, err = finish(driver)
    assert code == 130, err
    assert f"orchestrator run {job} 'track.description=a test' --resume tiny-1" in out, "another job would go on"
    assert read_record(run).state == "stopped"
    assert saved(run) == 1


def test_a_wrong_tracking_server_stops_a_first_start(tmp_path: Path) -> None:
    began = time.monotonic()
    code, _, err = finish(start("run", str(write_job(tmp_path)), "track.uri=http://127.0.0.1:9"))
    run = RunDir(tmp_path / "runs" / "tiny-1")
    assert code == 1, err
    assert "127.0.0.1:9" in err
    assert "Traceback" not in err
    assert read_record(run).state == "failed"
    assert saved(run) == 0
    assert time.monotonic() - began < 60.0


@pytest.mark.ray
@pytest.mark.soak
def test_two_runs_at_once_on_one_machine_do_not_meet(tmp_path: Path) -> None:
    job = write_job(tmp_path, ranks=2)
    drivers = [start("run", str(job), "--json") for _ in range(2)]
    results = [finish(driver, 280.0) for driver in drivers]
    assert [code for code, *_ in results] == [0, 0], [err for *_, err in results]
    assert {json.loads(out)["run_id"] for _, out, _ in results} == {"tiny-1", "tiny-2"}
    metrics = [json.loads(out)["metrics"] for _, out, _ in results]
    assert metrics[0] == metrics[1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_of_its_cluster(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "tiny-1")
    driver = start("run", str(write_job(tmp_path, ranks=2, callbacks=SLOW)))
    wait_until(lambda: any(beat.step >= 2 for beat in read_heartbeats(run)))
    tree = [(each.pid, each.create_time()) for each in psutil.Process(driver.pid).children(recursive=True)]
    assert len(tree) > 8
    driver.kill()
    finish(driver)
    # The sender stays a little to ship what was recorded.
    wait_until(lambda: not any(is_same_process(pid, began) for pid, began in tree), 40.0)
    assert not list(Path(tempfile.gettempdir()).glob(f"orch-ray-{driver.pid}-*"))
