"""One tiny run, made once as a user would (with a trace), that many tests look at; none of them changes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from orchestrator.runs.paths import RunDir
from tests.cluster.jobs import tiny


class Made(NamedTuple):
    """A finished run and how it came to be."""

    run: RunDir
    job: Path
    said: str


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    spec = tiny(folder / "runs", steps=30)
    job = folder / "tiny.yaml"
    job.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    words = [sys.executable, "-m", "orchestrator", "run", str(job), "--profile"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return Made(RunDir(folder / "runs" / "tiny-1"), job, done.stderr)
