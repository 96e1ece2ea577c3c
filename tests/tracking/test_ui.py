"""`orchestrator ui` starts a slim server, prints the link of the last run, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.ui import command
from orchestrator.errors import TrackingError
from orchestrator.runs.paths import RunDir
from orchestrator.tracking.links import last_run_link
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import TRAINING_VIEW, TrackingState, write_request, write_state
from orchestrator.tracking.server import free_port, is_healthy


def announce(run: RunDir, run_id: str) -> None:
    write_request(run)
    write_state(run, TrackingState("ready", experiment_id="1", run_id=run_id))


def test_it_serves_the_store_prints_the_link_and_ctrl_c_ends_all_of_it(run: RunDir, pump: Callable[..., Pump]) -> None:
    run_id = pump().shipper.run_id
    announce(run, run_id)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = [
            sys.executable,
            "-m",
            "orchestrator",
            "ui",
            "--port",
            str(port),
            "--storage",
            str(run.storage),
            "--json",
        ]
        process = subprocess.Popen(
            # Ctrl-C is ignored from the start, as in a script that ends the line with `&`.
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *said],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        told = json.loads(process.stdout.readline())
        messages = ""
        while "its cross closes it" not in messages:  # it is said after the link
            line = process.stderr.readline()
            assert line, messages
            messages += line
    assert told["server"] != f"http://127.0.0.1:{port}"
    assert told["url"] == f"{told['server']}/#/experiments/1/runs/{run_id}{TRAINING_VIEW}"
    assert is_healthy(told["server"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"port {port} is taken" in messages
    assert not is_healthy(told["server"])
    assert _processes_that_serve(str(run.storage)) == []


def _processes_that_serve(storage: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if storage in text and path.parent.name != str(os.getpid()):
            found.append((path.parent / "cmdline").read_text())
    return found


def test_the_last_run_is_the_one_started_last_and_has_an_mlflow_run(tmp_path: Path) -> None:
    assert last_run_link(tmp_path, "http://h") == ""
    for number in (2, 10, 1):
        run = RunDir(tmp_path / f"job-{number}")
        announce(run, f"id{number}" if number != 1 else "")
        os.utime(run.path / "tracking.json", (number_of := 1000 + [2, 10, 1].index(number), number_of))
    assert last_run_link(tmp_path, "http://h") == f"http://h/#/experiments/1/runs/id10{TRAINING_VIEW}"


def test_a_tracking_server_has_a_page_of_its_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--uri", "http://ann:pw@host:5000/", "--storage", str(tmp_path)])
    assert result.exit_code == 0
    assert "http://***@host:5000" in result.output


def test_a_folder_without_a_store_is_said_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--storage", str(tmp_path)])
    assert isinstance(result.exception, TrackingError)
    assert "run a job first" in result.exception.hint


def test_when_all_ports_are_taken_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise OSError("taken")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(TrackingError, match="are all taken"):
        free_port(5000)
