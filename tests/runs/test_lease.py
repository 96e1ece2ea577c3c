"""The lease: one holder at a time, growing tokens, dead holders replaced."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ClusterError
from orchestrator.runs import lease
from orchestrator.runs.paths import RunDir

spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = tmp_path / "digits-1"
    folder.mkdir()
    return RunDir(folder)


def _edit(run: RunDir, **changes: Any) -> None:
    run.lease.write_text(json.dumps(json.loads(run.lease.read_text()) | changes))


def _compete(path: Path, barrier: Barrier, answers: Queue[Any], stay: Any) -> None:
    barrier.wait(30)
    try:
        answers.put(lease.acquire(RunDir(path)).token)
    except ClusterError as error:
        answers.put(str(error))
    stay.wait(30)


def _hold_and_die(path: Path) -> None:
    lease.acquire(RunDir(path))
    os._exit(9)


def test_the_first_holder_gets_token_one_and_is_current(run: RunDir) -> None:
    held = lease.acquire(run)
    assert held.token == 1
    assert lease.is_current(run, 1)
    assert not lease.is_current(run, 2)
    assert lease.holder_alive(run)


def test_a_run_nobody_drives_is_not_current(run: RunDir) -> None:
    assert not lease.is_current(run, 1)
    assert not lease.holder_alive(run)


def test_a_living_holder_is_named(run: RunDir) -> None:
    lease.acquire(run)
    with pytest.raises(ClusterError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        lease.acquire(run)


def test_a_released_run_is_acquired_again_with_a_larger_token(run: RunDir) -> None:
    held = lease.acquire(run)
    held.release()
    assert not lease.is_current(run, held.token)
    assert lease.acquire(run).token == 2


def test_a_dead_holder_is_replaced_and_its_token_is_stale(run: RunDir) -> None:
    child = spawn.Process(target=_hold_and_die, args=(run.path,))
    child.start()
    child.join(30)
    assert child.exitcode == 9
    assert lease.acquire(run).token == 2
    assert not lease.is_current(run, 1)


def test_a_recycled_process_number_is_not_the_holder(run: RunDir) -> None:
    lease.acquire(run)
    _edit(run, started=time.time() - 1e6)
    assert lease.acquire(run).token == 2


@pytest.mark.parametrize(("age_s", "alive"), [(5.0, True), (lease.REMOTE_TIMEOUT_S + 5, False)])
def test_a_holder_on_another_host_lives_as_long_as_it_renews(run: RunDir, age_s: float, alive: bool) -> None:
    lease.acquire(run)
    _edit(run, host="elsewhere", renewed=time.time() - age_s)
    if alive:
        with pytest.raises(ClusterError, match="on elsewhere"):
            lease.acquire(run)
    else:
        assert lease.acquire(run).token == 2


def test_renewing_refreshes_the_time_and_fails_once_taken_over(run: RunDir) -> None:
    held = lease.acquire(run)
    _edit(run, renewed=0.0)
    held.renew()
    assert json.loads(run.lease.read_text())["renewed"] > time.time() - 30
    _edit(run, host="elsewhere", renewed=0.0)
    assert lease.acquire(run).token == 2
    with pytest.raises(ClusterError, match="taken over"):
        held.renew()
    held.release()
    assert lease.is_current(run, 2), "a stale release must not touch the new holder's lease"


def test_advancing_makes_the_former_attempt_stale(run: RunDir) -> None:
    first = lease.acquire(run)
    second = first.advance()
    assert second.token == 2
    assert not lease.is_current(run, first.token)
    assert lease.is_current(run, second.token)
    second.renew()


def test_a_damaged_lease_is_an_error_that_says_what_to_do(run: RunDir) -> None:
    run.lease.write_text('{"run_id": "x", ')
    with pytest.raises(ClusterError, match="delete that file"):
        lease.acquire(run)


def test_of_processes_that_ask_at_once_exactly_one_wins(run: RunDir) -> None:
    number = 4
    barrier, answers, stay = spawn.Barrier(number), spawn.Queue(), spawn.Event()
    children = [spawn.Process(target=_compete, args=(run.path, barrier, answers, stay)) for _ in range(number)]
    for child in children:
        child.start()
    got = [answers.get(timeout=60) for _ in children]
    stay.set()
    for child in children:
        child.join(30)
    assert [answer for answer in got if isinstance(answer, int)] == [1]
    assert all("already being driven" in answer for answer in got if not isinstance(answer, int))
