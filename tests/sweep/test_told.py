"""What a sweep's driver keeps of its jobs and what it tells the tracking store: secrets stay on this machine."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestrator.runs.catalog import create_run
from orchestrator.spec.load import load_spec
from orchestrator.sweep import told
from orchestrator.sweep.check import build_space
from tests.sweep.fakes import FakePool, Trainer, drive, folder_for
from tests.sweep.jobs import tiny_sweep
from tests.tracking.secrets import SECRETS, SILENT, assert_kept_for_the_owner_and_told_masked


def test_a_sweeps_job_is_kept_for_its_owner_only_and_told_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "start_sender", lambda *_: SILENT)
    job, run = load_spec(tiny_sweep(tmp_path, {}, **SECRETS)), create_run(tmp_path, "tiny", kind="sweep")
    tracking = told.SweepTracking(run, job, resume=False)
    tracking.describe(build_space(job), "test")
    tracking.shut()
    assert_kept_for_the_owner_and_told_masked(run)


def test_the_job_of_a_trial_is_for_its_owner_only(tmp_path: Path) -> None:
    data = tiny_sweep(tmp_path, {"space": {"optim.lr": [0.05]}, "search": {"use": "grid"}, "trials": None}, **SECRETS)
    run = folder_for(data)
    drive(run, data, FakePool(Trainer()))
    job = run.trials / "t000" / "job.yaml"
    assert "hunter2" in job.read_text()
    assert stat.S_IMODE(job.stat().st_mode) == 0o600
    readable = [path for path in run.path.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert [path for path in readable if "hunter2" in path.read_text(errors="replace")] == []
