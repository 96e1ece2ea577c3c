"""What a warm process does with a trained trial: compress it, time it. Called by `TrialWorker`.

`python -m orchestrator.cluster.trial_stage RUN_DIR` is the process that compresses; it ends with the one that asked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import ExportError
from orchestrator.runs.paths import RunDir

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset
    from orchestrator.spec.job import JobSpec

COMPRESS, TIME, LATENCY = "compress", "time", "latency"
"""Tasks: compress and check the file, time the file (alone), time the model as trained (alone)."""


def do_tasks(run: RunDir, job: JobSpec, data: Dataset, tasks: Sequence[str]) -> dict[str, float]:
    """Return the numbers that these tasks give. Raises ExportError when the compressed file does not hold."""
    values: dict[str, float] = {}
    for task in tasks:
        if task == COMPRESS:
            values |= _compress(run)
        elif task == TIME:
            from orchestrator.compress.trial import time_trial

            values |= time_trial(run)
        else:
            from orchestrator.train.latency import measure_latency

            values |= measure_latency(job, data)
    return values


def _compress(run: RunDir) -> dict[str, float]:
    from orchestrator.cluster.ending import run_stage
    from orchestrator.compress.trial import trial_values

    found = run_stage(run, "orchestrator.cluster.trial_stage", run.compress)
    if found.get("status") != "ok":
        raise ExportError(f"compression failed: {found.get('error', 'unknown reason')}", hint=found.get("hint", ""))
    return trial_values(found)


def main() -> int:
    """Compress the trial whose folder is given; return the exit code."""
    from orchestrator.runs.parent import die_with_parent

    die_with_parent()
    from orchestrator.compress.trial import main as compress

    return compress(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
