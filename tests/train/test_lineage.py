"""The dataset is recorded once per run, and again only when it is another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import load_dataset
from orchestrator.train.lineage import record_dataset
from tests.train.fitting import tiny_job


def test_a_resumed_run_does_not_record_the_same_data_again(tmp_path: Path) -> None:
    run, data = RunDir(tmp_path), load_dataset(JobSpec.model_validate(tiny_job()))
    for attempt, each in enumerate((data, data, replace(data, digest="0" * 16)), start=1):
        with SpoolWriter(run.spool / f"rank0-a{attempt}.jsonl") as spool:
            record_dataset(spool, run, each)
            spool.metrics(1, {"train/loss": 1.0})
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(run.spool.glob("*.jsonl"))]
    assert [[line["kind"] for line in each] for each in lines] == [
        ["dataset", "metrics"],
        ["metrics"],
        ["dataset", "metrics"],
    ]
    assert (lines[0][0]["digest"], lines[0][0]["context"]) == (data.digest, "training")
    assert lines[0][0]["num_samples"] == dict(data.shape.num_samples)
