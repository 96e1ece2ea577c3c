"""A profiled run measures its pipeline: bubble beside the ideal, a trace, a picture; only when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.parallel.process import Rank
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolReader, SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.testing.ranks import run_ranks
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import NullRecorder, Ports
from orchestrator.train.profile import measured_steps, record_trace

MICROBATCHES = 4


def job(steps: int, **train: Any) -> dict[str, Any]:
    return {
        "model": {"use": "mlp", "inputs": 64, "hidden": [32, 32, 32], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "train": {"steps": steps, "batch_size": 32, "eval_every_steps": 100, **train},
        "parallel": {
            "replicate": 1,
            "pipeline": 2,
            "schedule": "interleaved_zero_bubble",
            "microbatches": MICROBATCHES,
        },
        "track": {"every_steps": 1},
    }


def train(rank: int, world_size: int, spec: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Train as one rank; return rank 0's records without their times."""
    run = RunDir(Path(folder))
    spool = SpoolWriter(run.spool / "rank0-a1.jsonl") if rank == 0 else None
    engine = build_engine(JobSpec.model_validate(spec), Rank(rank, world_size, rank))
    fit(engine, Ports(run=run, recorder=spool or NullRecorder()))
    if spool is None:
        return []
    record_trace(spool, run)
    spool.close()
    lines, _ = SpoolReader(spool.path).read(0)
    return [line.record for line in lines if line.record is not None]


def values(records: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {each["step"]: each["values"][name] for each in records if name in each.get("values", {})}


@pytest.mark.parametrize(("steps", "told_at"), [(14, 5), (3, 3)])
def test_the_bubble_the_trace_and_the_picture_of_a_profiled_pipeline(steps: int, told_at: int, tmp_path: Path) -> None:
    records = run_ranks(train, 2, job(steps, profile=True), str(tmp_path))[0]
    ((step, measured),) = values(records, "perf/bubble_measured").items()
    assert step == told_at
    assert 0.0 < measured < 1.0
    assert values(records, "perf/bubble_ideal") == {told_at: 0.0}  # zero bubble: four microbatches are twice two ranks
    assert [each["step"] for each in records if "train/loss" in each.get("values", {})] == list(range(1, steps + 1))
    events = json.loads((tmp_path / "artifacts" / "profile" / "pipeline.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events} == {0, 1}
    kinds = {event["cat"] for event in events if event["ph"] == "X"}
    assert kinds >= {"forward", "input backward", "weight backward", "wait"}
    picture = (tmp_path / "artifacts" / "figures" / "pipeline.svg").read_text()
    assert picture.count("<path") > 4 * MICROBATCHES
    sent = {Path(each["path"]).name: each["artifact_path"] for each in records if each["kind"] == "artifact"}
    assert sent == {"trace.json": "profile", "pipeline.json": "profile", "pipeline.svg": "figures"}


def test_measuring_changes_no_loss_and_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    plain = run_ranks(train, 2, job(6), str(tmp_path / "plain"))[0]
    asked = run_ranks(train, 2, job(6, profile=True), str(tmp_path / "asked"))[0]
    assert values(plain, "train/loss") == values(asked, "train/loss")
    assert not values(plain, "perf/bubble_measured")
    assert not (tmp_path / "plain" / "artifacts").exists()


def test_a_pipeline_is_measured_past_its_first_step_and_outside_torchs_trace() -> None:
    assert measured_steps(1000) == range(2, 5)
    assert measured_steps(10) == range(5, 8)
    assert measured_steps(6) == range(5, 6)
    assert measured_steps(2) == range(1, 2)
    assert not measured_steps(1)
