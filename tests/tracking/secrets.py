"""A job with secrets, and what is asked of a run that has begun with it."""

from __future__ import annotations

import json
import stat
from types import SimpleNamespace

from orchestrator.runs.paths import RunDir

SECRETS = {"track": {"uri": "http://me:hunter2@example.org", "tags": {"api_key": "abc123"}}}
SILENT = SimpleNamespace(wait_ready=lambda: None, stop=lambda grace_s: None)
"""Stands for a sender that ships nothing."""


def assert_kept_for_the_owner_and_told_masked(run: RunDir) -> None:
    """The file has the secrets and only its owner may read it; the spool, which is told to MLflow, has none."""
    kept = run.resolved_yaml.read_text()
    assert "hunter2" in kept
    assert "abc123" in kept
    assert stat.S_IMODE(run.resolved_yaml.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in (run.spool / "driver.jsonl").read_text().splitlines()]
    text = next(line["text"] for line in lines if line.get("artifact_file") == "config/resolved.yaml")
    assert "api_key: '***'" in text
    assert "hunter2" not in str(lines)
    assert "abc123" not in str(lines)
