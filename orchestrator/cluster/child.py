"""The supervised child that trains a run of one process without Ray: `python -m orchestrator.cluster.child RUN ...`."""

from __future__ import annotations

import sys

from orchestrator.cluster.rank import run_guarded
from orchestrator.runs.parent import die_with_parent


def main(argv: list[str]) -> int:
    """Run rank 0 of 1; `argv` is folder, attempt, token, resume (0 or 1). Returns the exit code."""
    die_with_parent()
    folder, attempt, token, resume = argv
    try:
        run_guarded(
            folder,
            rank=0,
            world_size=1,
            local_rank=0,
            attempt=int(attempt),
            token=int(token),
            resume=resume == "1",
        )
    except Exception:  # already told in the run's folder; the traceback belongs in the rank's log
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
