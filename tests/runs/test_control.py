"""Stopping a run and letting it begin, by files."""

from __future__ import annotations

from pathlib import Path

from orchestrator.runs import control
from orchestrator.runs.catalog import create_run


def test_a_stop_is_asked_for_seen_and_cleared(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    poll = control.StopPoller(run, every_s=0.0)
    assert not control.stop_requested(run)
    control.request_stop(run, "asked by a test")
    control.request_stop(run, "asked twice")
    assert poll()
    assert control.stop_reason(run) == "asked by a test"
    control.clear_stop(run)
    assert not poll()
    assert control.stop_reason(run) == ""


def test_the_poller_looks_at_the_disk_only_now_and_then(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    poll = control.StopPoller(run, every_s=60.0)
    assert not poll()
    control.request_stop(run, "now")
    assert not poll()


def test_ranks_wait_for_permission_and_give_up_at_a_stop(tmp_path: Path) -> None:
    run = create_run(tmp_path, "digits")
    assert not control.wait_until_allowed(run, timeout_s=0.05)
    control.allow_start(run)
    assert control.wait_until_allowed(run, timeout_s=0.0)
    control.forbid_start(run)
    control.request_stop(run, "no tracking")
    assert not control.wait_until_allowed(run, timeout_s=60.0)
