"""`python -m orchestrator.train.launch RUN_DIR`: one rank as a process, alone or under torchrun."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.environment import torchrun_ranks
from orchestrator.runs.paths import RunDir


def main() -> None:
    """Parse the command line and run this process's rank."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.train.launch", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the run, with job.json in it")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--token", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--wait-for-go", action="store_true")
    given = parser.parse_args()
    from orchestrator.train.entry import run_rank

    rank, world_size, local_rank = torchrun_ranks() or (0, 1, 0)
    run_rank(
        RunDir(given.run_dir.resolve()),
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        attempt=given.attempt,
        token=given.token,
        resume=given.resume,
        wait_for_go=given.wait_for_go,
    )


if __name__ == "__main__":
    main()
