"""The compressing process of a sweep's trial: `python -m orchestrator.compress.trial RUN_DIR`, started after training.

As `compress.stage`, but it takes no time: others may train beside it. `time_trial` does that when nothing else runs.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.compress.manifest import read_page, write_page
from orchestrator.compress.runtimes.base import runtime_of
from orchestrator.compress.verify import check_artifact, time_artifact
from orchestrator.errors import ExportError, OrchestratorError
from orchestrator.log import get_logger, setup_file_logging
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec, MeasureSection

_log = get_logger("compress")
_TIMINGS = 3


def compress_trial(run: RunDir) -> bool:
    """Compress a trial's best model and have the file checked; say whether it holds. The outcome is in compress.json.

    Raises what `compress.stage.compress_run` raises.
    """
    from orchestrator.compress.pipeline import compress
    from orchestrator.compress.report import as_json, metrics
    from orchestrator.compress.stage import open_trained

    trained = open_trained(run)
    trained = replace(trained, job=_one_sample(trained.job))
    run.compress.unlink(missing_ok=True)  # it tells of files that are about to go
    outcome = compress(trained, run.compressed, _log.info, timed=False)
    with SpoolWriter(run.spool / "finish-compress.jsonl") as spool:
        spool.metrics(trained.step, metrics(outcome))
    write_json(run.compress, as_json(outcome))
    return outcome.ok


def time_trial(run: RunDir) -> dict[str, float]:
    """Return `compress/latency_ms` of a trial's checked file: batch 1, one thread, milliseconds of processor time.

    On a GPU: of wall time, from a sample in memory to the answer in memory.

    Too much noise: tried again, then ExportError, since no figure is better than a wrong one.
    """
    place = run.compressed / "artifact"
    rows: list[dict[str, Any]] = []
    for _ in range(_TIMINGS):
        rows = time_artifact(place)
        if rows and rows[0]["verdict"] == "ok":
            break
    page = read_page(place)
    write_page(place, replace(page, checked={**(page.checked or {}), "timing": rows}))
    write_json(run.compress, {**json.loads(run.compress.read_bytes()), "timing": rows})
    if not rows or "ms" not in rows[0]:
        why = rows[0]["verdict"] if rows else "no figure"
        raise ExportError(f"the compressed file could not be timed: {why}", hint="let nothing else use this machine")
    return {"compress/latency_ms": float(rows[0]["ms"])}


def trial_values(found: Mapping[str, Any]) -> dict[str, float]:
    """Return what a compress.json says of the file as objectives; quality is that on the validation split."""
    last, checked = found["steps"][-1], found["checked"]
    quality = {name: value for name, value in last["metrics"].items() if name.startswith("val/")}
    values = {**quality, "size_bytes": checked["size_bytes"], "size_ratio": checked["size_ratio"]}
    return {f"compress/{name}": float(value) for name, value in values.items()}


def recheck_trial(run: RunDir) -> dict[str, float]:
    """Reload a trial's file in a fresh process; return its quality on the final split, and its bytes.

    Raises ExportError when the file does not hold.
    """
    found = check_artifact(run.compressed / "artifact")
    quality = {f"{found['split']}/{name}": float(value) for name, value in found["metrics"].items()}
    return quality | {"compress/size_bytes": float(found["size_bytes"])}


def is_served(run: RunDir) -> bool:
    """Say whether a trial's file can become a model of the tracking store: one that needs the model's code cannot."""
    return not runtime_of(read_page(run.compressed / "artifact").format).code


def model_of(run: RunDir) -> dict[str, Any]:
    """Return the record by which a trial's file becomes a model of the tracking store."""
    found, page = json.loads(run.compress.read_bytes()), read_page(run.compressed / "artifact")
    steps = " -> ".join(step["use"] for step in found["steps"])
    size, ratio = found["checked"]["size_bytes"], found["checked"]["size_ratio"]
    return {
        "path": str(run.compressed / "artifact"),
        "flavour": page.format,
        "metrics": found["metrics"],
        "description": f"{size:,} bytes, {ratio:.1f} x smaller by {steps}, from {page.checkpoint}.",
        "tags": {"checkpoint": page.checkpoint, "compressed_by": steps, "size_ratio": f"{ratio:.3f}"},
    }


def _one_sample(job: JobSpec) -> JobSpec:
    measure = MeasureSection(batch=(1,), threads=(1,), rounds=job.compress.measure.rounds)
    return job.model_copy(update={"compress": job.compress.model_copy(update={"measure": measure, "control": False})})


def main(arguments: Sequence[str] | None = None) -> int:
    """Compress the model of the trial folder given. Return the exit code."""
    run = RunDir(Path((arguments or sys.argv[1:])[0]).resolve())
    setup_file_logging(run.logs / "compress.log")
    logging.captureWarnings(True)
    try:
        return 0 if compress_trial(run) else 1
    except OrchestratorError as error:
        write_json(run.compress, {"status": "failed", "error": error.message, "hint": error.hint, "metrics": {}})
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
