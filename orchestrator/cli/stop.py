"""`orchestrator stop`: ask a running job, from any terminal, to finish its step, save and leave; wait until it has."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.flags import Out, verb

if TYPE_CHECKING:
    from orchestrator.runs.catalog import RunInfo
    from orchestrator.runs.paths import RunDir

_AFTER_KILL_S = 20.0


@verb(example="orchestrator stop digits-cnn-1")
@click.argument("run_id", metavar="[RUN]", default="latest")
@click.option("--now", is_flag=True, help="Kill the workers instead of waiting for the step and the save.")
@click.option("--wait", "wait_s", default=300.0, show_default=True, help="Seconds to wait until it has stopped.")
@click.option("--storage", default="runs", show_default=True, help="Folder that holds the runs.")
def command(out: Out, run_id: str, now: bool, wait_s: float, storage: str) -> int:
    """Ask RUN (default: the latest) to finish its step, save and end, and wait until it has.

    The run's MLflow status becomes KILLED; `orchestrator run JOB --resume RUN` continues it, a sweep
    `orchestrator sweep JOB --resume`. Ends with 1 when it has not stopped in time.
    """
    from orchestrator.runs.catalog import describe_run, find_run
    from orchestrator.runs.control import request_stop

    run = find_run(Path(storage), run_id)
    info = describe_run(run, with_size=False)
    if not info.is_live:
        out.result({"run_id": run.run_id, "state": info.state}, [f"{run.run_id} is not running: {info.state}"])
        return 0
    request_stop(run, "orchestrator stop --now" if now else "orchestrator stop")
    if now:
        _kill_ranks(run)
    out.say(f"{run.run_id} was asked to stop; waiting", err=True)
    info = _wait(run, _AFTER_KILL_S if now else wait_s)
    if info.is_live and now:
        _kill_driver(info)
        info = describe_run(run, with_size=False)
    out.result({"run_id": run.run_id, "state": info.state}, [f"{run.run_id}: {info.state}"])
    return 1 if info.is_live else 0


def _wait(run: RunDir, timeout_s: float) -> RunInfo:
    from orchestrator.runs.catalog import describe_run

    deadline = time.monotonic() + timeout_s
    while True:
        info = describe_run(run, with_size=False)
        if not info.is_live or time.monotonic() > deadline:
            return info
        time.sleep(0.2)


def _kill_ranks(run: RunDir) -> None:
    from orchestrator.runs.heartbeat import kill_rank, read_heartbeats

    for beat in read_heartbeats(run):
        kill_rank(beat)


def _kill_driver(info: RunInfo) -> None:
    import socket

    record = info.record
    if record.host == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
        time.sleep(0.5)
