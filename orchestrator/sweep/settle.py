"""Gives what nobody drives any more its true end, in ledger, record and tracking store. Called at every end.

Trials and supernets are left open by a driver that was killed, when the next one was stopped before it began them
again.
"""

from __future__ import annotations

from orchestrator.errors import NotAbleError
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from orchestrator.supernet.page import supernet_folders
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import end_folder, trial_folder


def settle(run: RunDir, ledger: Ledger, reason: str) -> None:
    """End every trial and supernet that still counts as running; nothing of this sweep may be under way."""
    for trial in ledger.trials.values():
        if trial.state == "running":
            ledger.end(trial, "interrupted", reason=reason)
        for repeat in trial.attempts:
            folder = trial_folder(run, trial, repeat)
            if folder.path.is_dir() and _is_open(folder):
                state = _state_of(trial, repeat)
                why = trial.reason if state == trial.state else reason
                note = f"{state}: {why}" if why else state
                end_folder(folder, state, note, tags={"trial.state": state})
    for folder in supernet_folders(run):
        if folder.spool.is_dir() and _is_open(folder):
            end_folder(folder, "interrupted", f"interrupted: {reason}")


def last_sign_s(run: RunDir) -> float:
    """Return when the trial's ranks were last heard of, in seconds since 1970; 0.0: never."""
    return max((beat.time_s for beat in read_heartbeats(run)), default=0.0)


def _is_open(folder: RunDir) -> bool:
    try:
        return read_record(folder).is_live
    except NotAbleError:  # a power cut took the record: what it said is not known, and saying it again does no harm
        return True


def _state_of(trial: Trial, repeat: int) -> str:
    """A repeat may have been left open while others of its trial gave the result (`repeats` was lowered)."""
    if not trial.is_over or (trial.state == "finished" and repeat not in trial.repeats):
        return "interrupted"
    return trial.state
