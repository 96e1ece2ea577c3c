"""`FinishResult` and where it goes: `finish.json`, files in `artifacts/`, records in the spool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import NotAbleError, OrchestratorError
from orchestrator.export.base import CHECK_FILE
from orchestrator.export.manifest import read_manifest
from orchestrator.export.package import ExportOutcome
from orchestrator.export.score import Score
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, write_json
from orchestrator.runs.spool import SpoolReader, SpoolWriter

CONFUSION_FILE = "confusion.json"
EXAMPLE_FILE = "input_example.npy"
_EXAMPLE_ROWS = 2
_SERVED = "program"


@dataclass(frozen=True)
class FinishResult:
    """What became of the trained model. `seconds` says where the time went."""

    run_id: str
    checkpoint: str
    step: int
    weights_digest: str
    job_digest: str
    exports: tuple[ExportOutcome, ...]
    scored_format: str
    score: Score
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[ExportOutcome, ...]:
        """Formats that could not be made, each with its reason."""
        return tuple(outcome for outcome in self.exports if not outcome.ok)

    @property
    def metrics(self) -> dict[str, float]:
        """Final evaluation as logged: `test/loss`, `test/accuracy`."""
        return self.score.named()

    @property
    def served(self) -> ExportOutcome | None:
        """The export that the tracking server is given as the model; None when it failed."""
        return next((outcome for outcome in self.exports if outcome.format == _SERVED and outcome.ok), None)

    def as_json(self) -> dict[str, Any]:
        """Return the content of finish.json."""
        exports = [asdict(outcome) | {"path": str(outcome.path), "ok": outcome.ok} for outcome in self.exports]
        status = "failed" if self.failed else "ok"
        return {"status": status, **asdict(self), "exports": exports, "metrics": self.metrics}


def write_result(run: RunDir, found: FinishResult) -> None:
    """Write finish.json atomically."""
    write_json(run.finish, found.as_json())


def write_failure(run: RunDir, error: OrchestratorError) -> None:
    """Write finish.json of a stage that came to nothing, so that the driver can say why."""
    write_json(
        run.finish, {"status": "failed", "error": error.message, "hint": error.hint, "exports": [], "metrics": {}}
    )


def write_artifacts(run: RunDir, found: FinishResult) -> None:
    """Write the confusion matrix (class targets only) and the input example (the first held-out rows)."""
    import numpy as np
    from safetensors.numpy import load_file

    run.artifacts.mkdir(parents=True, exist_ok=True)
    confusion = found.score.confusion
    if confusion is not None:
        page = {"split": found.score.split, "samples": found.score.samples, "rows": "true class"}
        page |= {"columns": "predicted class", **asdict(confusion)}
        write_json(run.artifacts / CONFUSION_FILE, page)
    if found.served is not None:
        inputs = load_file(str(found.served.path / CHECK_FILE))["inputs"]
        np.save(run.artifacts / EXAMPLE_FILE, inputs[:_EXAMPLE_ROWS])


def record_result(run: RunDir, found: FinishResult) -> None:
    """Append to the spool what the tracking server shall know; what is there already is not repeated."""
    path = run.spool / f"finish-a{_attempt(run)}.jsonl"
    there = _recorded(path)
    with SpoolWriter(path) as spool:
        for kind, payload in _records(run, found):
            if _key(kind, payload) not in there:
                spool.record(kind, **payload)


def _records(run: RunDir, found: FinishResult) -> list[tuple[str, dict[str, Any]]]:
    records: list[tuple[str, dict[str, Any]]] = [("metrics", {"step": found.step, "values": found.metrics})]
    for outcome in found.exports:
        if outcome.ok:
            place = f"export/{outcome.path.name}"
            records.append(("artifact", {"path": str(outcome.path), "artifact_path": place}))
    if found.score.confusion is not None:
        confusion = str(run.artifacts / CONFUSION_FILE)
        records.append(("artifact", {"path": confusion, "artifact_path": "evaluation"}))
    if found.served is not None:
        records.append(("model", _model_record(run, found, found.served)))
    return records


def _model_record(run: RunDir, found: FinishResult, served: ExportOutcome) -> dict[str, Any]:
    page, score = read_manifest(served.path), found.score
    measured = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
    return {
        "path": str(served.path),
        "input_example": str(run.artifacts / EXAMPLE_FILE),
        "inputs": dict(page.inputs),
        "outputs": dict(page.outputs),
        "step": found.step,
        "metrics": found.metrics,
        "description": f"{measured} on {score.samples} {score.split} samples, from {found.checkpoint}.",
        "tags": {"checkpoint": found.checkpoint, "weights_digest": found.weights_digest},
    }


def _recorded(path: Path) -> set[str]:
    if not path.exists():
        return set()
    lines, _ = SpoolReader(path).read(0, limit_bytes=path.stat().st_size + 1)
    return {_key(line.record.pop("kind", ""), line.record) for line in lines if line.record is not None}


def _key(kind: str, payload: Mapping[str, Any]) -> str:
    content = {name: value for name, value in payload.items() if name not in ("seq", "time_ms", "kind")}
    return f"{kind} {json.dumps(content, sort_keys=True, default=str)}"


def _attempt(run: RunDir) -> int:
    try:
        return max(1, read_record(run).attempt)
    except NotAbleError:
        return 1
