"""How a run that trained to its end is closed: the finish stage, the verdict, the record, the result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.cluster.result import RunResult
from orchestrator.cluster.tracked import as_record
from orchestrator.environment import child_environment
from orchestrator.plan.plan import Plan
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import now_iso, read_record, update_record
from orchestrator.spec.job import JobSpec
from orchestrator.tracking.note import build_verdict
from orchestrator.tracking.request import TrackingState


@dataclass(frozen=True)
class End:
    """What became of a run. `state` is finished, stopped, or failed (trained, but not exported or not compressed)."""

    state: str
    verdict: str
    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()
    compression: tuple[str, ...] = ()


def finish_stage(
    run: RunDir, on_event: Callable[[Event], None], meanwhile: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Export, verify and evaluate in a process of its own, `meanwhile` doing something else; return what it wrote."""
    update_record(run, state="finishing")
    on_event(Event("finishing", "exporting, verifying, evaluating"))
    return run_stage(run, "orchestrator.export.finish", run.finish, meanwhile)


def compress_stage(run: RunDir, spec: JobSpec, on_event: Callable[[Event], None]) -> dict[str, Any]:
    """Compress the trained model in a process of its own, when the job has steps for that; return what it wrote."""
    if not spec.compress.steps:
        return {}
    on_event(Event("finishing", "compressing: " + ", ".join(step.use for step in spec.compress.steps)))
    return run_stage(run, "orchestrator.cluster.compress_stage", run.compress)


def run_stage(run: RunDir, module: str, outcome: Path, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Run a module on a run folder in a process of its own; return what it wrote to `outcome`, else the `error`."""
    outcome.unlink(missing_ok=True)
    log_name = f"{outcome.stem}.log"
    with open(run.logs / log_name, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=child_environment(),
        )
    try:
        meanwhile()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return read_json(outcome) or {"error": f"the {outcome.stem} stage ended with code {code}, see logs/{log_name}"}


def judge(
    spec: JobSpec,
    plan: Plan,
    fitted: Mapping[str, Any],
    finish: Mapping[str, Any],
    compressed: Mapping[str, Any],
    *,
    stopped: bool,
) -> End:
    """Say how a run ended from what the engine, the finish stage and the compressing stage wrote ({}: not run)."""
    unfit = bool(compressed) and compressed.get("status") != "ok"
    failed = not stopped and (finish.get("status") != "ok" or unfit)
    state = "stopped" if stopped else "failed" if failed else "finished"
    whole = {name: value for name, value in compressed.get("metrics", {}).items() if name.count("/") == 1}
    metrics = {**fitted.get("metrics", {}), **finish.get("metrics", {}), **whole}
    best_step = fitted.get("best_step")
    verdict = build_verdict(
        state,
        metrics,
        monitor=spec.train.monitor.metric,
        best=fitted.get("best_metrics"),
        best_epoch=plan.batch.epoch_after(best_step) if best_step and plan.batch.num_train_samples else None,
        layout=plan.layout.describe(),
    )
    return End(
        state=state,
        verdict=verdict,
        step=int(fitted.get("step", 0)),
        total_steps=int(fitted.get("total_steps", plan.batch.total_steps)),
        epoch=float(fitted.get("epoch", 0.0)),
        metrics=metrics,
        notes=(() if stopped else _notes(finish, compressed)),
        compression=tuple(compressed.get("table", ())),
    )


def close_record(run: RunDir, end: End, tracked: TrackingState, *, unsent: int, seconds: float) -> RunResult:
    """Write the final record; return the result, with a note when records wait for the tracking server."""
    record = update_record(
        run,
        state=end.state,
        verdict=end.verdict,
        ended=now_iso(),
        metrics=end.metrics,
        mlflow=as_record(tracked) if tracked.run_id else read_record(run).mlflow,
        model_version=tracked.model_version,
    )
    waiting = f"{unsent} records wait for the tracking server: `orchestrator runs sync {run.run_id}`"
    return RunResult(
        run=run,
        state=end.state,
        verdict=end.verdict,
        step=end.step,
        total_steps=end.total_steps,
        epoch=end.epoch,
        metrics=end.metrics,
        model_version=record.model_version,
        mlflow=record.mlflow,
        attempts=record.attempt,
        seconds=seconds,
        unsent=unsent,
        compressed_version=tracked.compressed_version,
        compression=end.compression,
        notes=(*end.notes, waiting) if unsent else end.notes,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _notes(finish: Mapping[str, Any], compressed: Mapping[str, Any]) -> tuple[str, ...]:
    notes: list[str] = []
    if finish.get("status") != "ok":
        notes.append(f"export failed: {finish.get('error') or _failed_exports(finish)}")
    if compressed and compressed.get("status") != "ok":
        hint = f"; {compressed['hint']}" if compressed.get("hint") else ""
        notes.append(f"compression failed: {compressed.get('error', 'unknown reason')}{hint}")
    return tuple(notes)


def _failed_exports(finish: Mapping[str, Any]) -> str:
    failed = [each for each in finish.get("exports", []) if not each.get("ok")]
    return "; ".join(f"{each.get('format')}: {each.get('error')}" for each in failed) or "unknown reason"
