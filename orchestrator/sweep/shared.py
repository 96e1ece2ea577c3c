"""Trainings that trials share: one whose job differs from an earlier one's only in `compress` is not trained again.

A finished training is kept in `sweep/trained/HASH`, its files linked, not copied, so that it outlives the trial's own
checkpoints; `--resume` finds it there. Used by the sweep's loop only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.fork import link_file
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.trial_run import TrialRun, trial_job

_BESIDE = {"name", "compress", "export", "track", "sweep"}  # they decide nothing about the training


@dataclass(frozen=True)
class Training:
    """One that has ended well: whose it was, and what the engine returned."""

    trial: str
    result: Mapping[str, Any]
    folder: Path


class Shared:
    """The trainings of one sweep: those that are kept, those under way, and trials that wait for one."""

    def __init__(self, run: RunDir, sweep: SweepSection) -> None:
        """Only a space that varies `compress` has trials that can share."""
        self._folder = kept_in(run)
        self._shares = any(path.split(".")[0] == "compress" for path in sweep.space)
        self._under_way: dict[str, TrialRun] = {}
        self.held: list[TrialRun] = []

    def key(self, work: TrialRun) -> str:
        """Return the hash of the training that a trial needs; "" when it shares with nobody."""
        return training_hash(trial_job(work.feasible.job, work.repeat)) if self._shares else ""

    def find(self, key: str) -> Training | None:
        """Return the training, if it is there whole."""
        place = self._folder / key
        try:
            page = json.loads((place / "training.json").read_bytes()) if key else None
        except (OSError, ValueError):
            return None
        return None if page is None else Training(str(page["trial"]), page["result"], place)

    def claim(self, key: str, work: TrialRun) -> bool:
        """Say whether this trial is to do the training; if another does it now, the trial is held back."""
        if key and self._under_way.get(key, work) is not work:
            self.held.append(work)
            return False
        if key:
            self._under_way[key] = work
        return True

    def release(self, work: TrialRun) -> list[TrialRun]:
        """Note that a trial no longer trains; return those that waited for it."""
        key = next((key for key, each in self._under_way.items() if each is work), "")
        self._under_way.pop(key, None)
        free = [each for each in self.held if key and self.key(each) == key]
        self.held = [each for each in self.held if each not in free]
        return free

    def keep(self, work: TrialRun, result: Mapping[str, Any]) -> None:
        """Keep a training that has ended well, for trials to come."""
        key = self.key(work)
        if not key or self.find(key) is not None:
            return
        fresh = self._folder / f"{key}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _link(work.run, RunDir(fresh))
        write_json(fresh / "training.json", {"trial": work.trial.name, "result": dict(result)})
        shutil.rmtree(self._folder / key, ignore_errors=True)
        os.replace(fresh, self._folder / key)

    def adopt(self, training: Training, work: TrialRun) -> None:
        """Make the trial's folder look as if it had been trained there."""
        shutil.rmtree(work.run.checkpoints, ignore_errors=True)
        _link(RunDir(training.folder), work.run)


def kept_in(run: RunDir) -> Path:
    """Return where a sweep keeps shared trainings."""
    return run.sweep / "trained"


def training_hash(job: JobSpec) -> str:
    """Return 16 hex digits that name a training: seed included, `compress` and what else decides nothing left out."""
    text = json.dumps(job.model_dump(mode="json", exclude=_BESIDE), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _link(source: RunDir, target: RunDir) -> None:
    shutil.copytree(source.checkpoints, target.checkpoints, copy_function=link_file)
    shutil.copyfile(source.result, target.result)
