"""A run is resumed with the job it began with; another job is refused before anything of the run is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.run import run_job
from orchestrator.errors import JobFileError
from tests.cluster.jobs import make_run, plan_of, tiny


def test_a_changed_key_is_named_and_the_run_is_left_as_it_was(tmp_path: Path) -> None:
    run = make_run(tiny(tmp_path))
    run.result.write_text("{}")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    other = tiny(tmp_path, steps=60)
    with pytest.raises(JobFileError, match="cannot be resumed with another job") as caught:
        run_job(other, plan_of(other), resume="latest")
    assert [problem.path for problem in caught.value.problems] == ["train.steps"]
    assert "was 30" in caught.value.problems[0].message
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
