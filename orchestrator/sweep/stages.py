"""The stages of a compressed trial as runs of their own below it in MLflow: its training, then every step.

Written by the driver once a trial is closed, from `result.json` and `compress.json`; shipped by the sweep's sender. A
trial that is not compressed has one stage, its training, which is the trial's own run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.point import short_value
from orchestrator.tracking.request import read_json, read_request, write_request


@dataclass(frozen=True)
class Stage:
    """What one stage is told as: a run with parameters and figures. Times in seconds since 1970."""

    name: str
    seconds: float
    ended: float
    metrics: Mapping[str, float]
    step: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    failed: bool = False


def tell_stages(trial: RunDir, job: JobSpec, trained_by: str = "") -> None:
    """Write a folder per stage of a closed trial that is compressed, as far as it came; nothing for any other.

    `trained_by` names the trial whose training this one took: then it has none of its own.
    """
    if not job.compress.steps:
        return
    for stage in _stages(trial, job, trained_by):
        _write(RunDir(trial.stages / stage.name), trial, stage)


def _stages(trial: RunDir, job: JobSpec, trained_by: str) -> Iterator[Stage]:
    result = read_json(trial.result)
    if result and not trained_by:
        figures = {**result["metrics"], **result["best_metrics"], "step_s": result.get("step_s", 0.0)}
        yield Stage("0_train", result["train_s"], trial.result.stat().st_mtime, figures, step=result["step"])
    found = read_json(trial.compress)
    if not found:
        return
    ended = trial.compress.stat().st_mtime
    steps = found.get("steps", [])
    left = sum(step["seconds"] for step in steps)
    for step, asked in zip(steps, job.compress.steps, strict=False):
        left -= step["seconds"]  # the time of day is that of the file, so a little late; how long it took is measured
        figures = {**step["metrics"], "size_bytes": step["size_bytes"], "params": step["params"]}
        options = asked.model_dump(mode="json", exclude_unset=True, exclude={"use"})
        tags = {"trained_by": trained_by} if trained_by else {}
        name, warning = f"{step['number']}_{step['use']}", step["warning"]
        yield Stage(name, step["seconds"], ended - left, figures, params=options, tags=tags, note=warning)
    if found.get("status") == "failed":
        number = len(steps) + 1
        after = job.compress.steps[len(steps)].use if len(steps) < len(job.compress.steps) else "check"
        yield Stage(f"{number}_{after}", 0.0, ended, {}, note=str(found.get("error", "")), failed=True)


def _write(run: RunDir, trial: RunDir, stage: Stage) -> None:
    """Write what the sender ships; the request comes last, so that a driver killed before it leaves no open run."""
    asked = read_request(trial)
    if asked is None or read_request(run) is not None:
        return
    ended_ms = int(1000 * stage.ended)
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.metrics(stage.step, {**stage.metrics, "seconds": stage.seconds})
        if stage.note:
            spool.record("note", text=stage.note)
        spool.record("status", status="FAILED" if stage.failed else "FINISHED", time_ms=ended_ms)
    of = asked.tags["orchestrator.run_id"]
    write_request(
        run,
        uri=asked.uri,
        experiment=asked.experiment,
        run_name=stage.name.replace("_", " ", 1),
        offline=asked.offline,
        tags={"orchestrator.kind": "stage", "orchestrator.stage_of": of, **stage.tags},
        params={name: short_value(value) for name, value in stage.params.items()},
        started_ms=ended_ms - int(1000 * stage.seconds),
        complete=True,
    )
