"""Heartbeats are cheap, and their absence is noticed from inside (timer) and outside (watchdog)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.runs.catalog import create_run
from orchestrator.runs.heartbeat import Heartbeat, HeartbeatWriter, Limits, Watchdog, clear_heartbeats, read_heartbeats
from orchestrator.runs.paths import RunDir


def test_the_newest_beat_of_every_rank_is_read(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    writers = [HeartbeatWriter(run, rank, attempt=1, armed=False) for rank in (0, 1)]
    writers[1].beat(7, "checkpoint")
    beats = read_heartbeats(run)
    assert [(beat.rank, beat.pid, beat.step, beat.section) for beat in beats] == [
        (0, os.getpid(), 0, "start"),
        (1, os.getpid(), 7, "checkpoint"),
    ]
    for writer in writers:
        writer.close()
    assert {beat.section for beat in read_heartbeats(run)} == {"done"}
    clear_heartbeats(run)
    assert read_heartbeats(run) == []


def test_a_beat_costs_microseconds(tmp_path: Path) -> None:
    writer = HeartbeatWriter(create_run(tmp_path, "digits"), 0, attempt=1, armed=False)
    began = time.perf_counter()
    for step in range(2000):
        writer.beat(step, "step")
    per_beat_s = (time.perf_counter() - began) / 2000
    writer.close()
    assert per_beat_s < 50e-6


@pytest.mark.parametrize(
    ("section", "expected"),
    [("start", 600.0), ("step", 40.0), ("eval", 400.0), ("checkpoint", 100.0), ("outside", 120.0)],
)
def test_limits_follow_what_is_usual(section: str, expected: float) -> None:
    assert Limits(start_s=600, step_s=30).of(section, median_step_s=4.0, last_checkpoint_s=20.0) == expected


def test_the_watchdog_reports_a_rank_that_stands_still_and_forgives_one_that_moves() -> None:
    now = [0.0]
    watchdog = Watchdog(clock=lambda: now[0], slack_s=1.0)

    def beat(rank: int, count: int, section: str = "step") -> Heartbeat:
        return Heartbeat(rank, 1, 0.0, "here", count, 5, section, 0.0, 10.0)

    assert watchdog.hung([beat(0, 1), beat(1, 1)]) == []
    now[0] = 10.5
    assert watchdog.hung([beat(0, 2), beat(1, 1)]) == []
    now[0] = 11.5
    assert [late.rank for late in watchdog.hung([beat(0, 3), beat(1, 1)])] == [1]
    assert watchdog.hung([beat(0, 3), beat(1, 1, "done")]) == []


_STUCK = """
import sys, time
from pathlib import Path
from orchestrator.runs.heartbeat import HeartbeatWriter, Limits
from orchestrator.runs.paths import RunDir
writer = HeartbeatWriter(RunDir(Path(sys.argv[1])), 0, attempt=1, limits=Limits(start_s=0.2, step_s=0.2))
writer.beat(1, "step"); writer.beat(2, "step")
time.sleep(30)
"""


def test_a_stuck_process_dumps_its_stacks_and_ends_itself(tmp_path: Path) -> None:
    run: RunDir = create_run(tmp_path, "digits")
    ended = subprocess.run([sys.executable, "-c", _STUCK, str(run.path)], timeout=20, check=False)
    assert ended.returncode == 1
    assert "Timeout" in (run.logs / "stacks-a1-rank0.txt").read_text()
