"""Which data a run was trained on, told once to the tracking store. Called by rank 0 when its engine is built."""

from __future__ import annotations

from orchestrator.data.dataset import Dataset
from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolReader, SpoolWriter


def record_dataset(spool: SpoolWriter, run: RunDir, data: Dataset) -> None:
    """Record the dataset as an input of the run, unless an earlier attempt recorded the same data already."""
    if (data.name, data.digest) in _recorded(run):
        return
    spool.record(
        "dataset",
        name=data.name,
        digest=data.digest,
        source=data.source,
        num_samples=dict(data.shape.num_samples),
        context="training",
    )


def _recorded(run: RunDir) -> set[tuple[str, str]]:
    """Return what is recorded: always the first line of an attempt, since nothing is measured before."""
    found = set()
    for path in run.spool.glob("rank0-a*.jsonl"):
        lines, _ = SpoolReader(path).read(0, limit_bytes=4096)
        record = lines[0].record if lines else None
        if record is not None and record.get("kind") == "dataset":
            found.add((str(record.get("name")), str(record.get("digest"))))
    return found
