"""Who is on the front and who is best, told to the trials' runs in MLflow at every end of a sweep; who has the name.

Those of earlier ends are told too: a sweep that is extended finds better ones, and then theirs is true no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchestrator.errors import NotAbleError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.trial_run import STATUS
from orchestrator.tracking.request import amend_request, read_request


def crown(run: RunDir, ledger: Ledger, front: Sequence[int]) -> None:
    """Set the tags `front` and `best` of all trials that ever had them to what is true now; `front` is best first."""
    before = set(ledger.crowned)
    ledger.crown(front)
    for number in sorted(before | set(front)):
        trial = ledger.trials[number]
        folder = RunDir(run.trials / trial.name)
        if not folder.spool.is_dir():
            continue
        said = {"front": str(number in front).lower(), "best": str(number == front[0] if front else False).lower()}
        with SpoolWriter(folder.spool / "driver.jsonl") as spool:
            spool.record("tags", values=said)
            # A status counts only as the last line; the one before may not have been sent yet.
            spool.record("status", status=STATUS.get(trial.state, "FAILED"), **_ended(folder))


def claim_name(run: RunDir, job: JobSpec, ledger: Ledger, best: int) -> None:
    """Let the best trial's model be registered under the job's name and alias, and no earlier best one's again."""
    for number in ledger.crowned:
        folder = RunDir(run.trials / ledger.trials[number].name)
        request = read_request(folder)
        if number != best and request is not None and (request.register_as or request.alias):
            amend_request(folder, register_as=None, alias=None)
    winner = RunDir(run.trials / ledger.trials[best].name)
    amend_request(winner, register_as=job.track.register_as, alias=job.track.alias)


def _ended(folder: RunDir) -> dict[str, Any]:
    """Return when the trial ended, as a status has it: telling more of it later does not prolong it."""
    try:
        ended = read_record(folder).ended
    except NotAbleError:
        ended = ""
    return {"time_ms": int(datetime.fromisoformat(ended).timestamp() * 1000)} if ended else {}
