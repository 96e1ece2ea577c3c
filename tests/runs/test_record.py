"""The record of a run: read, changed under a lock, replaced atomically."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import NotAbleError
from orchestrator.runs.catalog import create_run
from orchestrator.runs.record import driver_is_dead, process_started, read_record, update_record


def test_an_update_changes_only_what_it_names(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits", command="orchestrator run job.yaml")
    update_record(run, state="running", metrics={"val/loss": 0.5})
    record = read_record(run)
    assert (record.run_id, record.state, record.command) == ("digits-1", "running", "orchestrator run job.yaml")
    assert record.metrics == {"val/loss": 0.5}


def test_updates_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: _add_one(run), range(40)))
    fields = [update_record(run, **{name: value}) for name, value in (("state", "running"), ("verdict", "fine"))]
    assert (fields[-1].state, fields[-1].verdict) == ("running", "fine")
    assert not [path for path in run.path.iterdir() if path.name.startswith(".run.json")]


def _add_one(run: object) -> None:
    update_record(run, attempt=1)  # type: ignore[arg-type]


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        update_record(create_run(tmp_path, "digits"), colour="blue")


def test_a_damaged_record_says_so(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    run.record.write_text("{")
    with pytest.raises(NotAbleError, match="cannot be read"):
        read_record(run)


def test_a_driver_is_dead_when_its_process_is_gone_or_another_has_its_number(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    own = {"pid": os.getpid(), "pid_started": process_started(os.getpid()), "host": socket.gethostname()}
    record = update_record(run, state="running", **own)
    assert not driver_is_dead(record)
    assert driver_is_dead(replace(record, pid_started=1.0))
    assert driver_is_dead(replace(record, pid=2**22 + 1))
    assert not driver_is_dead(replace(record, pid=2**22 + 1, host="elsewhere"))
    assert not driver_is_dead(replace(record, pid=2**22 + 1, state="finished"))
