"""Runs are numbered, found, listed, measured and deleted."""

from __future__ import annotations

import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import JobFileError, NotAbleError
from orchestrator.runs.catalog import create_run, delete_run, find_run, list_runs, select_runs
from orchestrator.runs.numbers import NUMBERS
from orchestrator.runs.record import read_record
from orchestrator.runs.record import process_started, update_record


def test_numbers_count_up_per_name_and_never_collide(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: create_run(tmp_path, "digits").run_id, range(16)))
    assert sorted(runs, key=lambda run_id: int(run_id.split("-")[-1])) == [f"digits-{n}" for n in range(1, 17)]
    assert create_run(tmp_path, "digits-cnn").run_id == "digits-cnn-1"


def test_the_record_tells_no_secret_of_the_command(tmp_path: Path) -> None:
    run = create_run(tmp_path, "job", "orchestrator run job.yaml data.api_key=abc123 train.epochs=5")
    assert read_record(run).command == "orchestrator run job.yaml data.api_key=*** train.epochs=5"
    assert "abc123" not in (run.path / "run.json").read_text()


def test_a_run_is_found_by_id_or_as_the_latest_of_its_job(tmp_path: Path) -> None:
    first, other = create_run(tmp_path, "digits"), create_run(tmp_path, "other")
    assert find_run(tmp_path, "digits-1") == first
    assert find_run(tmp_path) == other
    assert find_run(tmp_path, name="digits") == first
    for wrong in ("digits-9", "../x", ".."):
        with pytest.raises(JobFileError, match="there is no run"):
            find_run(tmp_path, wrong)


def test_a_run_whose_driver_is_gone_shows_as_died(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    update_record(run, state="running", pid=2**22 + 1, host=socket.gethostname())
    (run.path / "big").write_bytes(b"x" * 5000)
    (info,) = list_runs(tmp_path)
    assert info.state == "died"
    assert not info.is_live
    assert info.size_bytes > 5000


def test_a_live_run_is_never_deleted_and_a_finished_one_is(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    own = {"pid": os.getpid(), "pid_started": process_started(os.getpid()), "host": socket.gethostname()}
    update_record(run, state="running", **own)
    with pytest.raises(NotAbleError, match="is running"):
        delete_run(run)
    update_record(run, state="finished")
    assert delete_run(run) > 0
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_number_is_never_given_again_after_its_run_is_deleted(tmp_path: Path) -> None:
    first, second = create_run(tmp_path, "digits"), create_run(tmp_path, "digits")
    update_record(second, state="finished")
    delete_run(second)
    shutil.rmtree(first.path)
    assert create_run(tmp_path, "digits").run_id == "digits-3"
    assert create_run(tmp_path, "other").run_id == "other-1"


@pytest.mark.parametrize("broken", ["", "[1]", '{"digits": "x"}'])
def test_without_its_notes_the_numbers_follow_from_the_folders(broken: str, tmp_path: Path) -> None:
    create_run(tmp_path, "digits")
    (tmp_path / NUMBERS).write_text(broken)
    assert create_run(tmp_path, "digits").run_id == "digits-2"


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    for _ in range(4):
        update_record(create_run(tmp_path, "digits"), state="finished")
    runs = list_runs(tmp_path)
    assert [info.run.run_id for info in select_runs(runs, keep=3)] == ["digits-1"]
    assert select_runs(runs, older_days=1) == []
    assert len(select_runs(runs)) == 4
