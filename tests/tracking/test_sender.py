"""The sender process: ready quickly, wrong addresses said clearly, killed and started again without loss."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.errors import TrackingError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, now_iso, write_record
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import handle as handle_module
from orchestrator.tracking import store
from orchestrator.tracking.busy import progress_mark
from orchestrator.tracking.cursor import count_remaining, load_cursor
from orchestrator.tracking.handle import SenderHandle, sync
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import read_state, request_path, resolve_uri, state_path, write_request, write_state
from orchestrator.tracking.sender import LAST_FLUSH_S, Sender
from orchestrator.tracking.server import free_port
from tests.tracking.conftest import assert_each_step_once, end_run, history, write_steps

Start = Callable[..., SenderHandle]


def test_a_run_is_shipped_whole_and_the_figures_are_told(
    run: RunDir, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    request = write_request(run, experiment="digits", tags={"kind": "test"}, params={"train.steps": 8_000})
    handle = start(run, request)
    state = handle.wait_ready()
    ready_s = time.monotonic() - begin
    page = f"http://127.0.0.1:5000/#/experiments/{state.experiment_id}/runs/{state.run_id}"
    assert state.url == f"{page}?workflowType=machine_learning"
    write_steps(run, "rank0-a1", range(1, 8_001))
    end_run(run)
    begin = time.monotonic()
    assert handle.finish() == 0
    finish_s = time.monotonic() - begin
    assert handle.process.returncode == 0
    client = store.open_client(request.uri, run.storage)
    stored = client.get_run(state.run_id)
    assert_each_step_once(history(client, state.run_id), range(1, 8_001))
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "job-1")
    assert stored.data.params == {"train.steps": "8000"}
    assert stored.data.tags["kind"] == "test"
    assert [item.path for item in client.list_artifacts(state.run_id, "figures")] == ["figures/loss.png"]
    assert client.get_experiment(state.experiment_id).artifact_location == (run.storage / "mlartifacts").as_uri()
    with capsys.disabled():
        print(f"\nsender: ready {ready_s:.1f} s after start; {8_000 / finish_s:.0f} points/s into SQLite")


def test_a_sender_killed_again_and_again_loses_and_doubles_nothing(run: RunDir, start: Start) -> None:
    chance = random.Random(11)
    request = write_request(run)
    write_steps(run, "rank0-a1", range(1, 12_001))
    kills = 0
    for _ in range(2):
        handle = start(run, request)
        handle.wait_ready()
        time.sleep(chance.uniform(0.0, 0.5))
        kills += handle.is_alive
        handle.process.send_signal(signal.SIGKILL)
        handle.process.wait()
    end_run(run)
    handle = start(run, request)
    assert handle.finish(30) == 0
    assert kills == 2
    client = store.open_client(request.uri, run.storage)
    assert len(client.search_runs([read_state(run).experiment_id])) == 1
    assert_each_step_once(history(client, read_state(run).run_id), range(1, 12_001))


def test_syncing_a_run_that_is_told_whole_starts_nothing(
    run: RunDir, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = start(run, write_request(run))
    handle.wait_ready()
    write_steps(run, "rank0-a1", range(1, 11))
    end_run(run)
    assert handle.finish() == 0
    with monkeypatch.context() as nothing:
        nothing.setattr(handle_module, "start_sender", lambda *_, **__: pytest.fail("a sender was started"))
        counts = sync(run)
    assert (counts.shipped, counts.remaining, counts.state.state) == (0, 0, "ready")

    # Reopened by a resumed driver that was killed: MLflow says RUNNING, so there is something to tell.
    again = start(run, write_request(run, resume=True))
    end = time.monotonic() + 30
    while load_cursor(run).closed and time.monotonic() < end:
        time.sleep(0.05)
    assert not load_cursor(run).closed
    again.process.terminate()
    again.process.wait()


def test_syncing_an_ended_sweep_ends_a_trial_that_was_left_open(run: RunDir, start: Start) -> None:
    trial = RunDir(run.trials / "t000")
    trial.path.mkdir(parents=True)
    request = write_request(run)
    handle = start(run, request)
    state = handle.wait_ready()
    write_request(trial, uri=request.uri)
    write_steps(trial, "rank0-a1", range(1, 6))
    end_run(run)
    assert handle.finish() == 0
    client = store.open_client(request.uri, run.storage)
    child = read_state(trial).run_id
    assert client.get_run(child).info.status == "RUNNING"
    gone = RunRecord("t000", "job", state="running", created=now_iso(), pid=2**22 + 1, host=socket.gethostname())
    write_record(trial, gone)
    assert sync(run).remaining == 0
    assert client.get_run(child).info.status == "KILLED"
    assert client.get_run(state.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_three_senders_on_one_fresh_store_do_not_race(tmp_path: Path, start: Start) -> None:
    handles = []
    for number in range(3):
        run = RunDir(tmp_path / "runs" / f"job-{number}")
        run.path.mkdir(parents=True)
        handles.append(start(run, write_request(run, experiment="shared")))
    states = [handle.wait_ready() for handle in handles]
    assert len({state.run_id for state in states}) == 3
    assert len({state.experiment_id for state in states}) == 1
    for handle in handles:
        end_run(handle.run)
    assert [handle.finish() for handle in handles] == [0, 0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")) == []


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


@pytest.mark.parametrize("case", ["closed", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_server_that_does_not_answer_stops_a_first_start_and_says_what_to_do(
    run: RunDir, start: Start, case: str, silent_port: int
) -> None:
    uri = f"http://ann:s3cret@127.0.0.1:{silent_port if case == 'silent' else free_port()}"
    begin = time.monotonic()
    handle = start(run, write_request(run, uri=uri))
    with pytest.raises(TrackingError) as caught:
        handle.wait_ready()
    assert time.monotonic() - begin < 15
    assert uri.replace("ann:s3cret", "***") in caught.value.message
    assert "track.uri" in caught.value.hint
    assert "track.offline: true" in caught.value.hint
    left = [path.read_text() for path in (*run.logs.iterdir(), run.path / "tracking-state.json")]
    assert "s3cret" not in "".join(left)
    assert stat.S_IMODE(request_path(run).stat().st_mode) == 0o600
    assert handle.process.wait() == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ["closed", pytest.param("silent", marks=pytest.mark.slow)])
def test_the_end_of_an_offline_run_does_not_wait_for_a_server_that_never_answers(
    run: RunDir, start: Start, case: str, silent_port: int
) -> None:
    port = silent_port if case == "silent" else free_port()
    handle = start(run, write_request(run, uri=f"http://127.0.0.1:{port}", offline=True))
    write_steps(run, "rank0-a1", range(1, 11))
    end_run(run)
    begin = time.monotonic()
    assert handle.finish(6.0) == 11
    assert time.monotonic() - begin < 11
    assert not handle.is_alive
    assert read_state(run).state == "offline"


def test_failing_again_is_no_progress_and_writes_nothing(run: RunDir) -> None:
    sender = Sender(run, write_request(run, uri="http://127.0.0.1:9", offline=True), once=False, launch="")
    sender._note_failure(ConnectionError("refused"), first=False)
    mark, written = progress_mark(run), state_path(run).stat().st_mtime_ns
    sender._note_failure(ConnectionError("refused"), first=False)
    assert state_path(run).stat().st_mtime_ns == written
    sender._note_failure(ConnectionError("no route"), first=False)
    assert read_state(run).error == "no route"
    assert progress_mark(run) == mark


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ["closed", "silent"])
def test_one_sigterm_ends_a_sender_that_reaches_no_server(
    run: RunDir, start: Start, case: str, silent_port: int
) -> None:
    port = silent_port if case == "silent" else free_port()
    handle = start(run, write_request(run, uri=f"http://127.0.0.1:{port}", offline=True))
    end = time.monotonic() + 20
    while not (run.logs / "sender.log").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    handle.process.terminate()
    assert handle.process.wait(LAST_FLUSH_S + 2) is not None


def test_a_scheme_that_no_store_has_stops_a_first_start_at_once(run: RunDir, start: Start) -> None:
    handle = start(run, write_request(run, uri="htpp://127.0.0.1:5000"))
    with pytest.raises(TrackingError, match=r"htpp://127\.0\.0\.1:5000 cannot be used") as caught:
        handle.wait_ready()
    assert "track.uri" in caught.value.hint


def test_a_store_in_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:////proc/nowhere/mlflow\.db cannot be used"):
        store.open_client("sqlite:////proc/nowhere/mlflow.db", tmp_path)


def test_a_deleted_experiment_is_refused(run: RunDir) -> None:
    client = store.open_client(resolve_uri(None, run.storage), run.storage)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match="was deleted"):
        store.ensure_experiment(client, write_request(run, experiment="gone"), run.storage)


def test_resume_never_waits_and_goes_on_in_the_same_mlflow_run(run: RunDir, start: Start) -> None:
    first = start(run, write_request(run))
    run_id = first.wait_ready().run_id
    write_steps(run, "rank0-a1", range(1, 60))
    first.process.terminate()
    first.process.wait()
    assert count_remaining(run) == 0  # asked to leave, it first ships what is there
    begin = time.monotonic()
    again = start(run, write_request(run, resume=True))
    again.wait_ready()
    assert time.monotonic() - begin < 0.5
    write_steps(run, "rank0-a2", range(41, 101))
    end_run(run)
    assert again.finish() == 0
    client = store.open_client(resolve_uri(None, run.storage), run.storage)
    assert read_state(run).run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert_each_step_once(history(client, run_id), range(1, 101))


@pytest.mark.slow
def test_an_old_sender_leaves_the_last_word_to_the_one_of_the_resumed_run(run: RunDir, start: Start) -> None:
    old = start(run, write_request(run, run_name="job-1"))
    run_id = old.wait_ready().run_id
    new = start(run, write_request(run, run_name="job-1", resume=True))
    end_run(run)
    old.process.wait(20)
    assert new.process.wait(20) == 0
    client = store.open_client(resolve_uri(None, run.storage), run.storage)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_sender_whose_driver_died_ships_what_is_there_and_leaves_the_run_open(run: RunDir) -> None:
    code = (
        "import os, sys; from pathlib import Path; from orchestrator.runs.paths import RunDir\n"
        "from orchestrator.tracking.handle import start_sender\n"
        "from orchestrator.tracking.request import read_request\n"
        "run = RunDir(Path(sys.argv[1])); handle = start_sender(run, read_request(run)); handle.wait_ready()\n"
        "print(handle.process.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    write_request(run)
    driver = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    sender_pid = int(driver.stdout)
    write_steps(run, "rank0-a1", range(1, 101))
    end = time.monotonic() + 40
    while Path(f"/proc/{sender_pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{sender_pid}").exists()
    client = store.open_client(resolve_uri(None, run.storage), run.storage)
    run_id = read_state(run).run_id
    assert_each_step_once(history(client, run_id), range(1, 101))
    assert client.get_run(run_id).info.status == "RUNNING"

    write_record(run, RunRecord(run_id="job-1", name="job", state="running", created=now_iso(), pid=2**22 + 1))
    record = json.loads(run.record.read_text())
    record["host"] = socket.gethostname()
    run.record.write_text(json.dumps(record))
    write_steps(run, "rank0-a1", range(101, 111))
    counts = sync(run)
    assert (counts.shipped, counts.remaining) == (10, 0)
    assert client.get_run(run_id).info.status == "KILLED"
    assert len(history(client, run_id)) == 110


def test_a_sender_whose_driver_died_before_it_was_up_leaves_too(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    request, commands = write_request(run), list[list[str]]()
    with monkeypatch.context() as caught:
        caught.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
        handle_module.start_sender(run, request)
    told = int(commands[0][commands[0].index("--parent") + 1])
    assert told == os.getpid()

    def leaves(parent: int) -> bool:
        sender = Sender(run, request, once=False, launch="", parent=parent)
        sender._quiet_since -= 60.0
        return sender._must_leave(reachable=True)

    monkeypatch.setattr(os, "getppid", lambda: told)
    assert not leaves(told)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # gone before the sender looked
    assert leaves(told)


def test_a_sync_beside_a_sender_that_does_not_leave_says_so(run: RunDir) -> None:
    write_request(run)
    write_steps(run, "rank0-a1", range(1, 4))
    with store.file_lock(run.spool / "sender.lock"):
        counts = sync(run, held_s=0.1)
    assert (counts.shipped, counts.remaining) == (0, 3)
    assert "another process is sending this run's records" in counts.unsent[0]


def test_a_sync_of_a_run_that_was_deleted_in_mlflow_says_so_at_once(
    run: RunDir, pump: Callable[..., Pump], sync_here: None
) -> None:
    shipped = pump()
    write_state(run, read_state(run), state="ready", run_id=shipped.shipper.run_id)
    shipped.shipper.client.delete_run(shipped.shipper.run_id)
    counts = sync(run)
    assert counts.remaining == 0  # only its status was to be set
    assert f"mlflow runs restore --run-id {shipped.shipper.run_id}" in counts.unsent[0]


def test_what_the_driver_imports_to_start_a_sender_has_no_mlflow_in_it() -> None:
    code = (
        "import sys; import orchestrator.tracking.handle, orchestrator.tracking.request, orchestrator.tracking.links\n"
        "import orchestrator.tracking.note, orchestrator.tracking.server, orchestrator.tracking.figures\n"
        "import orchestrator.runs.spool, orchestrator.runs.system, orchestrator.cli.ui\n"
        "assert not {'mlflow', 'torch', 'ray', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_survives_its_file_and_knows_its_key_again(run: RunDir) -> None:
    first = write_request(run, uri="sqlite:///here.db", params={"a": 1}, register_as="digits")
    assert first.uri == f"sqlite:///{Path.cwd() / 'here.db'}"
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.record("status", status="KILLED")
    again = write_request(run, uri="sqlite:///here.db", params={"a": 1}, register_as="digits", resume=True)
    changed = {"resume": True, "after_bytes": os.path.getsize(run.spool / "driver.jsonl")}
    assert asdict(again) == asdict(first) | changed
