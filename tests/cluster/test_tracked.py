"""What a run's driver keeps of its job and what it tells the tracking store: secrets stay on this machine."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cluster import tracked
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.runs.catalog import create_run
from orchestrator.spec.job import JobSpec

JOB = JobSpec.model_validate(
    {
        "model": {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "parallel": {"replicate": 1},
        "track": {"uri": "http://me:hunter2@example.org", "tags": {"api_key": "abc123"}},
    }
)


def test_the_job_is_kept_for_its_owner_only_and_told_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = SimpleNamespace(wait_ready=lambda: None, stop=lambda grace_s: None)
    monkeypatch.setattr(tracked, "start_sender", lambda *_: silent)
    run = create_run(tmp_path, "job")
    run.resolved_yaml.write_text("of an earlier version, which anybody could read")
    told = tracked.Tracked(run, JOB, build_plan(JOB, Available(2.0, 0, 2**33)), "test", resume=False)
    told.describe()
    told.shut()
    kept = run.resolved_yaml.read_text()
    assert "hunter2" in kept
    assert "abc123" in kept
    assert stat.S_IMODE(run.resolved_yaml.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in (run.spool / "driver.jsonl").read_text().splitlines()]
    text = next(line["text"] for line in lines if line.get("artifact_file") == "config/resolved.yaml")
    assert "api_key: '***'" in text
    assert "hunter2" not in str(lines)
    assert "abc123" not in str(lines)
