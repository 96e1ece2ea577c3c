"""Exports the models of a sweep's winners: each verified in a fresh process and evaluated on held-out data.

The same finish stage as a run's, on the trial's folder; of a trial that was compressed the file is there already and is
reloaded. The best trial's model is registered, if the job says as what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.ending import finish_stage
from orchestrator.errors import ExportError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, update_record
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.crown import claim_name
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.summary import Summary


def export_trials(
    sweep: RunDir, job: JobSpec, section: SweepSection, summary: Summary, ledger: Ledger
) -> tuple[dict[int, Mapping[str, float]], tuple[str, ...]]:
    """Export what `sweep.export` says; return the test metrics by trial, and a note for each that failed."""
    wanted = {"front": list(summary.front), "best": list(summary.front[:1]), "none": []}[section.export]
    exported: dict[int, Mapping[str, float]] = {}
    notes: list[str] = []
    if wanted:
        claim_name(sweep, job, ledger, summary.front[0])
    for key in wanted:
        trial = summary.trials[key]
        run = RunDir(sweep.trials / trial.name)
        if not run.checkpoints.is_dir():
            notes.append(
                f"{trial.name} has no checkpoint left to export: `orchestrator run {run.path}/job.yaml` trains it"
            )
            continue
        state = read_record(run).state
        found = _compressed(run) if run.compressed.is_dir() else finish_stage(run, lambda event: None)
        update_record(run, state=state)
        if found.get("status") == "ok":
            exported[key] = dict(found.get("metrics", {}))
        else:
            notes.append(f"{trial.name} was not exported: {found.get('error') or 'see its logs/finish.log'}")
    return exported, tuple(notes)


def _compressed(run: RunDir) -> dict[str, Any]:
    """Reload a trial's compressed file in a fresh process and hand it to the tracking store."""
    from orchestrator.compress.trial import is_served, model_of, recheck_trial

    try:
        metrics = recheck_trial(run)
    except ExportError as error:
        return {"status": "failed", "error": error.message}
    place = run.compressed / "artifact"
    with SpoolWriter(run.spool / "finish-compress.jsonl") as spool:
        spool.metrics(int(json.loads(run.result.read_bytes())["step"]), metrics)
        spool.record("artifact", path=str(place), artifact_path="compress/artifact")
        if is_served(run):
            spool.record("model", **model_of(run))
    return {"status": "ok", "metrics": metrics}
