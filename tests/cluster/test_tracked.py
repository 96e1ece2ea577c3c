"""What a run's driver keeps of its job and what it tells the tracking store: secrets stay on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster import tracked
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.runs.catalog import create_run
from orchestrator.spec.job import JobSpec
from tests.tracking.secrets import SECRETS, SILENT, assert_kept_for_the_owner_and_told_masked

JOB = JobSpec.model_validate(
    {
        "model": {"use": "mlp", "inputs": 64, "hidden": [8], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "parallel": {"replicate": 1},
        **SECRETS,
    }
)


def test_the_job_is_kept_for_its_owner_only_and_told_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "start_sender", lambda *_: SILENT)
    run = create_run(tmp_path, "job")
    run.resolved_yaml.write_text("of an earlier version, which anybody could read")
    told = tracked.Tracked(run, JOB, build_plan(JOB, Available(2.0, 0, 2**33)), "test", resume=False)
    told.describe()
    told.shut()
    assert_kept_for_the_owner_and_told_masked(run)
