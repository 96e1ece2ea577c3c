"""A measured pipeline: every stage's work on every microbatch is there once, in order, and the bubble is its rest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from orchestrator.errors import PlanError
from orchestrator.parallel.timeline import Span, Timeline, measured_bubble
from orchestrator.spec.job import JobSpec
from orchestrator.verify.timeline import Measured, measure_pipeline, save


def job(schedule: str, pipeline: int = 2) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"use": "mlp", "inputs": 64, "hidden": [32, 32, 32], "outputs": 10},
            "data": {"use": "digits", "flat": True},
            "train": {"steps": 5, "batch_size": 32},
            "parallel": {"replicate": 1, "pipeline": pipeline, "schedule": schedule, "microbatches": 4},
        }
    )


def work(measured: Measured, kind: str) -> list[tuple[int, int]]:
    spans = [span for line in measured.timelines for span in line["spans"] if span["kind"] == kind]
    return sorted((span["stage"], span["microbatch"]) for span in spans)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_zero_bubble"])
def test_every_stage_works_on_every_microbatch_once(schedule: str, tmp_path: Path) -> None:
    measured = measure_pipeline(job(schedule), num_steps=3)
    stages = len(measured.stages.layers)
    all_pairs = sorted((stage, microbatch) for stage in range(stages) for microbatch in range(4))
    assert work(measured, "forward") == all_pairs
    if schedule == "1f1b":
        assert work(measured, "backward") == all_pairs
    else:
        assert sorted({*work(measured, "input backward"), *work(measured, "backward")}) == all_pairs
    for line in measured.timelines:
        ends = [(span["start_s"], span["end_s"]) for span in line["spans"] if span["kind"] != "loss"]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
        assert ends[-1][1] <= line["step_s"]
    assert 0.0 < measured.measured_bubble < 1.0
    save(measured, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events} == {0, 1}
    save(measured, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().count("<path") > stages * 4


def test_the_bubble_is_the_share_of_time_without_work() -> None:
    first = Timeline(0, 4.0, (Span("forward", 0, 0, 0.0, 1.0), Span("wait", -1, -1, 1.0, 3.0)))
    second = Timeline(1, 4.0, (Span("backward", 1, 0, 1.0, 4.0),))
    assert measured_bubble([first, second]) == pytest.approx(1 - (1 + 3) / 8)


def test_a_job_without_a_pipeline_cannot_be_measured() -> None:
    with pytest.raises(PlanError, match="no pipeline to measure"):
        measure_pipeline(job("1f1b", pipeline=1))
