"""Which job may go on with a sweep: space, budgets, searcher may change; what makes trials comparable may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import JobFileError
from orchestrator.runs.catalog import create_run, find_run
from orchestrator.runs.record import write_json
from orchestrator.spec.load import load_spec
from orchestrator.sweep.resume import require_same_job
from tests.sweep.jobs import tiny_sweep


def begun(storage: Path) -> Any:
    run = create_run(storage, "tiny", kind="sweep")
    write_json(run.job, load_spec(tiny_sweep(storage, {})).model_dump(mode="json"))
    return run


@pytest.mark.parametrize(
    "sweep",
    [
        {"trials": 30, "time_s": 60},
        {"space": {"optim.lr": {"min": 0.001, "max": 0.5, "log": True}, "train.batch_size": [8, 16]}},
        {"search": {"use": "tpe"}, "scheduler": {"use": "asha"}, "seed": 4},
        {"start": [{"optim.lr": 0.05}], "export": "best", "keep": "all"},
    ],
)
def test_a_sweep_may_be_extended(tmp_path: Path, sweep: dict[str, Any]) -> None:
    require_same_job(begun(tmp_path), load_spec(tiny_sweep(tmp_path, sweep)))


def test_a_value_that_is_swept_may_be_another_in_the_job(tmp_path: Path) -> None:
    require_same_job(begun(tmp_path), load_spec(tiny_sweep(tmp_path, {}, optim={"lr": 0.3})))


@pytest.mark.parametrize(
    ("sweep", "sections", "path"),
    [
        ({}, {"train": {"steps": 40}}, "train.steps"),
        ({}, {"model": {"hidden": [9]}}, "model.hidden"),
        ({"objectives": {"val/accuracy": "max"}}, {}, "sweep.objectives"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, sweep: dict[str, Any], sections: dict[str, Any], path: str) -> None:
    with pytest.raises(JobFileError) as caught:
        require_same_job(begun(tmp_path), load_spec(tiny_sweep(tmp_path, sweep, **sections)))
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: text.replace('"optim":', '"optimiser":', 1), "optimiser: Extra inputs are not permitted"),
    ],
)
def test_a_job_that_cannot_be_read_is_told_in_words(tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    run = begun(tmp_path)
    run.job.write_text(change(run.job.read_text()))
    with pytest.raises(JobFileError, match=r"job\.json cannot be read: ") as caught:
        require_same_job(run, load_spec(tiny_sweep(tmp_path, {})))
    assert words in caught.value.message
    assert "restore it from a copy" in str(caught.value.hint)


def test_a_sweep_that_never_wrote_its_job_may_go_on(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.job.unlink()
    require_same_job(run, load_spec(tiny_sweep(tmp_path, {})))


def test_runs_and_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sweep, run = create_run(tmp_path, "tiny", kind="sweep"), create_run(tmp_path, "tiny")
    assert find_run(tmp_path, name="tiny", kind="sweep") == sweep
    assert find_run(tmp_path, name="tiny", kind="run") == run
    assert find_run(tmp_path, name="tiny") == run
    with pytest.raises(JobFileError, match="tiny-1 is a sweep, not a run"):
        find_run(tmp_path, "tiny-1", kind="run")
    with pytest.raises(JobFileError, match="there is no sweep"):
        find_run(tmp_path, name="other", kind="sweep")
